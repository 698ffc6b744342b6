# The machine. `nixos-generate-config --show-hardware-config > hardware-configuration.nix` describes yours.
{
  imports = [ ./hardware-configuration.nix ];

  boot.loader.systemd-boot.enable = true;
  boot.loader.efi.canTouchEfiVariables = true;

  services.openssh = {
    enable = true;
    settings.PasswordAuthentication = false;
    settings.KbdInteractiveAuthentication = false;
  };
  users.users.root.openssh.authorizedKeys.keys = [ ]; # yours, or nobody gets in

  system.stateVersion = "26.05";
}
