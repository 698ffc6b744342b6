# The plan's table for nftables, the routing rules that hold without it, and the guard that loads it again. What each does when
# is in docs/firewall.md; harness/guests/activate.py does the same for the Debian guest.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (config.tentaflake) plan;
  inherit (plan.nftables) family table;

  asking = [
    pkgs.jq
    pkgs.nftables
  ];
  note = pkgs.writeShellScript "tentaflake-note-table" ''
    export PATH=${lib.makeBinPath asking}:$PATH
    ${plan.nftables.note}
  '';

  ip = lib.getExe' pkgs.iproute2 "ip";
  # ip-rule(8): agents' networks are no way to each other, with or without a firewall. The host's own way stays.
  # systemd-networkd removes, whenever it starts, all rules that are not its own, but for the kernel's.
  routingRules =
    flag: network:
    let
      pair = "from ${network} to ${network}";
    in
    [
      {
        add = "${flag} rule add priority 4700 iif lo ${pair} lookup main protocol kernel";
        del = "${flag} rule del priority 4700";
      }
      {
        add = "${flag} rule add priority 4701 ${pair} prohibit protocol kernel";
        del = "${flag} rule del priority 4701";
      }
    ];
  routing =
    routingRules "-4" plan.routing.unreachable.ipv4 ++ routingRules "-6" plan.routing.unreachable.ipv6;

  # Open in NixOS' own firewall, and closed all the same.
  closed = protocol: lib.subtractLists plan.host.${protocol} config.networking.firewall.${protocol};
  warnClosed =
    protocol:
    lib.optional (closed protocol != [ ]) (
      "networking.firewall.${protocol} has ${toString (closed protocol)}, which the agents' firewall keeps closed: "
      + "add it to tentaflake.host.${protocol} if it is to be open"
    );
in
{
  imports = [ ./options.nix ];

  config = {
    warnings = warnClosed "allowedTCPPorts" ++ warnClosed "allowedUDPPorts";

    networking.nftables = {
      enable = true;
      # Not `ruleset`, which would have NixOS flush Docker's tables too.
      tables.${table} = {
        inherit family;
        inherit (plan.nftables) content;
      };
    };
    # The plan's table is the whole of the host's firewall. A packet has to be accepted by every table, so a second one would
    # only take away what the plan grants: agents' way to the speech server, and their published ports.
    networking.firewall.enable = lib.mkDefault false;

    systemd.services.nftables = {
      before = [ "docker.service" ];
      serviceConfig = {
        ExecStartPost = lib.mkAfter [ "${note}" ];
        ExecReload = lib.mkAfter [ "${note}" ];
      };
    };

    systemd.services.tentaflake-routing = {
      description = "No route from an agent's network to another's";
      unitConfig.DefaultDependencies = false;
      after = [ "local-fs.target" ];
      before = [
        "docker.service"
        "network-pre.target"
      ];
      wants = [ "network-pre.target" ];
      wantedBy = [ "multi-user.target" ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = map (rule: "${ip} ${rule.add}") routing;
        ExecStop = map (rule: "${ip} ${rule.del}") routing;
      };
    };

    systemd.services.tentaflake-guard = {
      description = "Is the firewall of the agents still there?";
      wants = [ "tentaflake-watch.service" ];
      after = [ "nftables.service" ];
      path = asking;
      script = plan.nftables.guard;
      serviceConfig.Type = "oneshot";
    };
    systemd.timers.tentaflake-guard = {
      description = "Ask whether the firewall of the agents is still there";
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnActiveSec = plan.nftablesCheckSec;
        OnUnitActiveSec = plan.nftablesCheckSec;
        AccuracySec = 1;
      };
    };
  };
}
