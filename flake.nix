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

      # `nix run .#NAME -- ARGS`: what ci/NAME runs, with programs and Python packages from nixpkgs. The source is
      # in the store, where nothing can be written: .artifacts go to the directory that the command is called in.
      mkApp = pkgs: name: command: description: {
        type = "app";
        program = nixpkgs.lib.getExe (
          pkgs.writeShellApplication {
            inherit name;
            runtimeInputs = [
              (pkgs.python3.withPackages (python: [
                python.cryptography
                python.hypothesis
                python.msgspec
                python.paramiko
                python.pexpect
                python.pytest
                python.pytest-testinfra
                python.pytest-xdist
                python.qemu-qmp
                python.rich
                python.typer
              ]))
              pkgs.age
              pkgs.dpkg
              pkgs.e2fsprogs
              pkgs.fakeroot
              pkgs.iproute2
              pkgs.mmdebstrap
              pkgs.nftables
              pkgs.nix
              pkgs.openssh
              pkgs.qemu
            ];
            text = ''
              export PYTHONPATH=${self} PYTHONDONTWRITEBYTECODE=1
              exec python3 -P -m ${command} "$@"
            '';
          }
        );
        meta = { inherit description; };
      };
    in
    {
      # Evaluates with builtins alone: no input is fetched for a plan.
      plans.agent-host = policy.plan {
        agents = import ./agents.nix;
        host = import ./host.nix;
      };

      lib = {
        inherit policy;
        inherit (policy) mkHermesAgent;
      };

      apps = forEachSystem (pkgs: {
        verify = mkApp pkgs "verify" "harness verify" "Boot the reference host and attack it";
        test = mkApp pkgs "test" "pytest -p no:cacheprovider --rootdir=${self} ${self}/tests" "Run the whole test suite";
      });

      formatter = forEachSystem (pkgs: pkgs.nixfmt-tree);
    };
}
