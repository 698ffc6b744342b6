# The settings of a host as a whole. Whatever concerns one agent is in spec.nix.
let
  types = import ./types.nix;
  inherit (types) listOf nullOr record;

  # The speech server's port is for agents that are granted it and nobody else (T3).
  openPort = types.also types.port (
    types.satisfying (
      port: port != speechPort
    ) "must not be the speech server's port" "grant it to an agent with tts = true"
  );
  speechPort = 5001;
  # Sorted, each once: how the user orders them makes no difference to the plan.
  ports =
    port:
    types.also (listOf "ports" port) (
      value:
      types.valid (
        builtins.sort builtins.lessThan (
          map builtins.head (builtins.attrValues (builtins.groupBy toString value))
        )
      )
    );

  # "h-" is the mark of an agent's bridge: the firewall would take such an interface for an agent.
  interface =
    types.also
      (types.matching "[A-Za-z0-9][A-Za-z0-9_.-]{0,14}"
        "must be the name of a network interface, at most 15 characters"
        "write a name like \"tailscale0\""
      )
      (
        types.satisfying (
          name: builtins.substring 0 2 name != "h-" && name != "lo"
        ) "must not be \"lo\" or start with \"h-\", as agents' bridges do" "rename the interface"
      );
in
{
  inherit speechPort;
  parse = record "a host" {
    name = {
      type =
        types.matching "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
          "must be a host name of lower-case letters, digits and dashes"
          "write a name like \"agent-host\"";
      default = "agent-host";
    };
    allowedTCPPorts = {
      type = ports openPort;
      default = [ 22 ];
    };
    allowedUDPPorts = {
      type = ports types.port;
      default = [ ];
    };
    # The private half of the SSH key that secrets are encrypted for.
    secretsIdentity = {
      type =
        types.matching "/[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*"
          "must be the absolute path of a private SSH key on the host, of letters, digits and . _ - only"
          "write a path like \"/etc/ssh/ssh_host_ed25519_key\"";
      default = "/etc/ssh/ssh_host_ed25519_key";
    };
    # null: no tailnet, and so no published port either.
    tailnetInterface = {
      type = nullOr interface;
      default = null;
    };
  };
}
