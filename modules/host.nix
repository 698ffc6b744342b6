# The host as a whole: Docker, the slice that all agents are in, and the resolver that agents' look-ups go through.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (config.tentaflake) plan;

  hasQuotas =
    fileSystem:
    lib.any (
      option:
      lib.elem option [
        "quota"
        "usrquota"
      ]
      || lib.hasPrefix "usrjquota=" option
    ) fileSystem.options;

  # Agents' bridges, and the ends of their containers' wires, which Docker names.
  wires = [
    "h-*"
    "veth*"
  ];
in
{
  imports = [ ./options.nix ];

  config = {
    networking.hostName = lib.mkDefault plan.host.name;

    # ext4 takes user quotas with a module that no initrd has by itself (the kernel asks for it while it mounts /).
    boot.initrd.kernelModules = lib.mkIf (lib.any hasQuotas (lib.attrValues config.fileSystems)) [
      "quota_v2"
    ];

    virtualisation.docker = {
      enable = lib.mkDefault (plan.agents != { });
      extraPackages = [ pkgs.crun ];
      # Docker's own default, as in the Debian guest; NixOS' depends on system.stateVersion. An agent's unit restarts its
      # container with Docker, so there is nothing to keep alive (nixos/modules/virtualisation/docker.nix).
      daemon.settings = lib.mkMerge [
        plan.docker.settings
        { live-restore = false; }
      ];
    };

    # An agent's uid, should it get to run on the host, asks nothing of the Nix daemon: that builds outside of every limit of
    # it, and what it puts into the store can be read by all (nix.conf(5), allowed-users).
    nix.settings.allowed-users = [
      "root"
      "@wheel"
    ];

    # Nothing on the host asks an agent for an address, a route or a name server. NixOS' own dhcpcd asks on every interface
    # that there is, networkd and NetworkManager on those that they are told to manage.
    networking.dhcpcd.denyInterfaces = wires;
    networking.networkmanager.unmanaged = map (name: "interface-name:${name}") wires;
    systemd.network.networks."05-tentaflake" = {
      matchConfig.Name = wires;
      linkConfig.Unmanaged = true;
    };

    # What brings a secret into the environment of its agent's processes; Docker's settings name it.
    environment.etc.${lib.removePrefix "/etc/" plan.containerInit.path} = {
      text = plan.containerInit.content;
      inherit (plan.containerInit) mode;
    };

    systemd.slices.${lib.removeSuffix ".slice" plan.slice.name} = {
      description = "All Hermes agents of this host";
      sliceConfig = {
        MemoryMax = plan.slice.memoryMax;
        MemorySwapMax = 0; # Docker's own limit is lost when systemd sets a container's others again, as after a reload
      };
    };

    # Docker asks the host's resolver for its containers, if that is on the loopback; an agent sends no packet to a name
    # server itself, and the firewall knows no such rule. systemd-resolved would not do: Docker goes past its 127.0.0.53.
    # (nixos/modules/services/networking/dnsmasq.nix; with resolveLocalQueries, /etc/resolv.conf names it.)
    services.dnsmasq = {
      enable = lib.mkDefault (plan.agents != { });
      settings = {
        listen-address = [ "127.0.0.1" ];
        bind-interfaces = true;
      };
    };
  };
}
