# What of the reference host is not its agents (agents.nix) nor its settings (host.nix): disks, boot loader, SSH. Yours has its own.
{
  boot.loader.systemd-boot.enable = true;
  boot.loader.efi.canTouchEfiVariables = true;
  boot.initrd.availableKernelModules = [
    "ahci"
    "nvme"
    "sd_mod"
    "virtio_blk"
    "virtio_pci"
    "xhci_pci"
  ];

  # mkfs.ext4 -O quota -E quotatype=usrquota -L nixos: agents with a `disk` limit take user quotas.
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
    options = [ "usrquota" ];
  };
  fileSystems."/boot" = {
    device = "/dev/disk/by-label/boot";
    fsType = "vfat";
    options = [ "umask=0077" ];
  };

  # With the keys of users.users.root.openssh.authorizedKeys.keys, and nothing else.
  services.openssh = {
    enable = true;
    settings = {
      PasswordAuthentication = false;
      KbdInteractiveAuthentication = false;
    };
  };

  system.stateVersion = "26.05";
}
