{
  description = "A host with two agents";

  inputs = {
    # Where you have it from: this path stands for your clone, and any other address that Nix knows will do.
    tentaflake.url = "git+file:///where/tentaflake/is";
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
