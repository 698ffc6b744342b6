# The audit daemon's place on the host: what it watches, the systemd unit but for what to run, and its settings.
{ agents }:
let
  inherit (builtins) fromJSON readFile;
  directories = map (agent: {
    agent = agent.name;
    path = agent.stateDir;
    inherit (agent) uid;
  }) agents;
in
{
  inherit directories;
  # None without somebody to watch.
  units =
    if agents == [ ] then
      { }
    else
      { "hermes-auditd.service" = fromJSON (readFile ../auditd/unit.json); };
  config = {
    inherit directories;
    metrics = "/run/hermes-auditd/metrics.prom";
  };
}
