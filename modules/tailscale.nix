# The tailnet, where the host has one: which of its ports lead to an agent is in the plan's firewall and containers. How the
# host joins it (services.tailscale.authKeyFile, or `tailscale up` by hand) is the owner's.
{ config, lib, ... }:
let
  inherit (config.tentaflake.plan.host) tailnetInterface;
in
{
  imports = [ ./options.nix ];

  config = lib.mkIf (tailnetInterface != null) {
    services.tailscale = {
      enable = true;
      interfaceName = tailnetInterface;
    };
  };
}
