# What makes a NixOS host a machine of the harness; the Debian guest has the same (harness/guests/debian.py): a root shell on a
# virtio port, one network card that leads to SSH and nowhere else and one that is the LAN, a serial console.
{
  config,
  lib,
  network,
  pkgs,
  ...
}:
let
  sourceOf =
    directory:
    lib.cleanSourceWith {
      src = directory;
      filter = path: _: baseNameOf path != "__pycache__";
    };
in
{
  nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";
  system.stateVersion = "26.05";

  # QEMU boots the kernel. No 9p, no virtiofs: a machine with one cannot be forked.
  boot.loader.grub.enable = false;
  boot.initrd.availableKernelModules = [
    "virtio_blk"
    "virtio_pci"
  ];
  boot.kernelModules = [
    "virtio_console"
    "wireguard"
  ];
  fileSystems."/" = {
    device = "/dev/vda";
    fsType = "ext4";
    options = [ "usrquota" ];
  };
  # As nixos/modules/installer/sd-card/sd-image.nix does: the store's database, and the profile, at the first boot.
  boot.postBootCommands = ''
    if [ -e /nix-path-registration ]; then
      ${lib.getExe' config.nix.package "nix-store"} --load-db < /nix-path-registration
      touch /etc/NIXOS
      rm /nix-path-registration
    fi
  '';

  networking = {
    usePredictableInterfaceNames = false;
    dhcpcd.wait = "background"; # NixOS' own client, which asks on every interface that is neither configured nor denied
    interfaces.eth0 = {
      ipv4.addresses = [
        {
          address = "10.0.2.15";
          prefixLength = 24;
        }
      ];
      ipv6.addresses = [
        {
          address = "fec0::15";
          prefixLength = 64;
        }
      ];
    };
    interfaces.eth1 = {
      ipv4.addresses = [
        {
          address = network.ipv4;
          prefixLength = 24;
        }
      ];
      ipv6.addresses = [
        {
          address = network.ipv6;
          prefixLength = 64;
        }
      ];
    };
    defaultGateway = network.gateway4;
    defaultGateway6 = network.gateway6;
  };
  # Also while there are no agents, so that a switch brings little that is new.
  virtualisation.docker.enable = true;
  services.dnsmasq.enable = true;
  services.dnsmasq.settings.resolv-file = lib.mkForce network.resolvers;
  systemd.tmpfiles.settings."10-guest" = {
    ${network.resolvers}.f.mode = "0644";
    # What tests run in the guest, where the Debian guest has it.
    "/usr/lib/tentaflake".d.mode = "0755";
    "/usr/lib/tentaflake/auditd".L.argument = "${sourceOf ../../../modules/auditd}";
  };
  systemd.tmpfiles.settings."20-guest-speech" = {
    "/usr/lib/tentaflake/speech".L.argument = "${sourceOf ../../../modules/tts}";
    "/usr/lib/tentaflake/speech-wheels".L.argument = "${
      pkgs.python3.withPackages (python: [ python.openai ])
    }/${pkgs.python3.sitePackages}";
  };
  services.openssh = {
    enable = true;
    authorizedKeysInHomedir = true;
    settings.PasswordAuthentication = false;
    settings.KbdInteractiveAuthentication = false;
  };
  services.getty.autologinUser = "root";
  # The tailnet's machines are on a wire without Tailscale's servers: the harness makes the interface.
  services.tailscale.enable = lib.mkForce false;

  systemd.services.tentaflake-shell = {
    description = "Root shell of the test harness";
    unitConfig.DefaultDependencies = false;
    after = [ "systemd-remount-fs.service" ];
    wantedBy = [ "sysinit.target" ];
    restartIfChanged = false;
    environment.PATH = lib.mkForce "/run/wrappers/bin:/run/current-system/sw/bin";
    serviceConfig = {
      ExecStart = "${lib.getExe pkgs.python3} -I ${../../vm/guest_shell.py}";
      Restart = "always";
      RestartSec = 0;
      OOMScoreAdjust = -1000;
    };
  };
  environment.systemPackages = [
    pkgs.age
    pkgs.busybox
    pkgs.dnsmasq
    pkgs.gawk
    pkgs.iptables
    pkgs.jq
    pkgs.linuxquota
    pkgs.nmap
    (pkgs.python3.withPackages (python: [ python.scapy ]))
    pkgs.wireguard-tools
  ];
}
