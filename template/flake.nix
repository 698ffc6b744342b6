{
  description = "A host with two agents";

  inputs = {
    tentaflake.url = "github:OWNER/tentaflake"; # where you have it from
    nixpkgs.follows = "tentaflake/nixpkgs";
  };

  outputs =
    { nixpkgs, tentaflake, ... }:
    let
      agents = import ./agents.nix;
      host.name = "my-host";
    in
    {
      # What `verify --flake .#my-host` attacks.
      plans.my-host = tentaflake.lib.policy.plan { inherit agents host; };

      nixosConfigurations.my-host = nixpkgs.lib.nixosSystem {
        modules = [
          tentaflake.nixosModules.default
          ./configuration.nix
          {
            tentaflake = {
              agents = tentaflake.lib.byName agents;
              inherit host;
              secretsRoot = ./.;
            };
          }
        ];
      };
    };
}
