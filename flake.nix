{
  description = "Hermes agents on one host, kept apart, and a harness that proves it by attacking them";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      policy = import ./modules/policy;
      forEachSystem =
        f:
        nixpkgs.lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
          system: f nixpkgs.legacyPackages.${system}
        );

      # `nix run .#NAME -- ARGS`: a command of ci/ with the programs that it would otherwise install.
      mkApp = pkgs: name: command: description: {
        type = "app";
        program = nixpkgs.lib.getExe (
          pkgs.writeShellApplication {
            inherit name;
            runtimeInputs = [
              pkgs.age
              pkgs.dpkg
              pkgs.e2fsprogs
              pkgs.mmdebstrap
              pkgs.nftables
              pkgs.nix
              pkgs.openssh
              pkgs.python3
              pkgs.qemu
            ];
            text = ''exec ${self}/ci/${command} "$@"'';
          }
        );
        meta = { inherit description; };
      };
    in
    {
      # Evaluates with builtins alone: no input is fetched for a plan.
      plans.agent-host = policy.plan {
        agents = import ./agents.nix;
        host.name = "agent-host";
      };

      lib = {
        inherit policy;
        inherit (policy) mkHermesAgent;
      };

      apps = forEachSystem (pkgs: {
        verify = mkApp pkgs "verify" "harness verify" "Boot the reference host and attack it";
        test = mkApp pkgs "test" "test" "Run the whole test suite";
      });

      formatter = forEachSystem (pkgs: pkgs.nixfmt-tree);
    };
}
