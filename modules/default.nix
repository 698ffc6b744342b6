# All of a host: its agents, what keeps them apart, and the record of what they do. Beside it, it takes agenix' module, for
# secrets (flake.nix, `nixosModules.default`). Each module here can also be imported by itself.
{ config, lib, ... }:
{
  imports = [
    ./agents.nix
    ./auditd
    ./firewall.nix
    ./host.nix
    ./options.nix
    ./secrets.nix
    ./switch.nix
    ./tailscale.nix
    ./tts
  ];

  services.hermes-auditd.directories = config.tentaflake.plan.audit.directories;
  services.tentaflake-tts.speech =
    let
      inherit (config.tentaflake.plan) speech;
    in
    lib.mkIf (speech.agents != [ ]) { inherit (speech) listen clients; };
}
