# The reference host itself. docs/agents.md lists every setting.
{
  name = "agent-host";
  tailnetInterface = "tailscale0";
}
