{
  description = "Hermes agents on one host, kept apart, and a harness that proves it by attacking them";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    agenix = {
      url = "github:ryantm/agenix";
      inputs.nixpkgs.follows = "nixpkgs";
      # For other systems than NixOS.
      inputs.darwin.follows = "";
      inputs.home-manager.follows = "";
    };
    hermes-agent = {
      url = "github:NousResearch/hermes-agent";
      inputs.nixpkgs.follows = "nixpkgs";
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      agenix,
      hermes-agent,
    }:
    let
      inherit (nixpkgs) lib;
      policy = import ./modules/policy;
      # Not lib.genAttrs: Nix looks for `.#plans.agent-host` among the packages first, and must not fetch nixpkgs for that.
      forEachSystem =
        f:
        builtins.listToAttrs (
          map
            (system: {
              name = system;
              value = f nixpkgs.legacyPackages.${system};
            })
            [
              "x86_64-linux"
              "aarch64-linux"
            ]
        );

      # All that the harness and its tests run, besides what is in every system's PATH.
      programs = pkgs: [
        (pkgs.python3.withPackages (python: [
          python.cryptography
          python.fastapi
          python.hypothesis
          python.jinja2
          python.miniaudio
          python.msgspec
          python.numpy
          python.onnx
          python.onnxruntime
          python.openai
          python.paramiko
          python.pexpect
          (python.toPythonModule pkgs.piper-tts)
          python.prometheus-client
          python.pytest
          python.pytest-testinfra
          python.pytest-xdist
          python.pyyaml
          python.qemu-qmp
          python.rich
          python.soundfile
          python.soxr
          python.typer
          python.uvicorn
        ]))
        pkgs.age
        pkgs.dpkg
        pkgs.e2fsprogs
        pkgs.fakeroot
        pkgs.git
        pkgs.iproute2
        pkgs.jq
        pkgs.nftables
        pkgs.nix
        pkgs.openssh
        pkgs.qemu
        pkgs.util-linux
      ];

      # A program that runs a Python module of this source. That is in the store, where nothing can be written: .artifacts go
      # to the directory that the command is called in.
      mkProgram =
        pkgs: name: command:
        pkgs.writeShellApplication {
          inherit name;
          runtimeInputs = programs pkgs;
          text = ''
            export PYTHONPATH=${self} PYTHONDONTWRITEBYTECODE=1
            # nixpkgs has no mmdebstrap, which makes the Debian guest.
            export TENTAFLAKE_GUEST=''${TENTAFLAKE_GUEST:-nixos}
            exec python3 -P -m ${command} "$@"
          '';
        };
      # `nix run .#NAME -- ARGS`: what ci/NAME runs.
      mkApp = pkgs: name: command: description: {
        type = "app";
        program = lib.getExe (mkProgram pkgs name command);
        meta = { inherit description; };
      };

      # The image that an agent has by default.
      ownImage =
        { pkgs, ... }:
        {
          tentaflake.imageStreams.${policy.defaultImage} =
            lib.mkDefault
              self.packages.${pkgs.stdenv.hostPlatform.system}.hermes-image;
        };

      mkHost =
        system:
        lib.nixosSystem {
          modules = [
            self.nixosModules.default
            ./machine.nix
            {
              nixpkgs.hostPlatform = system;
              tentaflake = {
                agents = policy.byName (import ./agents.nix);
                host = import ./host.nix;
                secretsRoot = ./.;
              };
            }
          ];
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
        inherit (policy) byName mkHermesAgent;
      };

      nixosModules = {
        default.imports = [
          ./modules
          agenix.nixosModules.default
          ownImage
        ];
        secrets.imports = [
          ./modules/secrets.nix
          agenix.nixosModules.default
        ];
        agents = ./modules/agents.nix;
        auditd = ./modules/auditd;
        firewall = ./modules/firewall.nix;
        host = ./modules/host.nix;
        switch = ./modules/switch.nix;
        tailscale = ./modules/tailscale.nix;
        tts = ./modules/tts;
      };

      nixosConfigurations = {
        agent-host = mkHost "x86_64-linux";
        agent-host-aarch64 = mkHost "aarch64-linux";
      };

      packages =
        let
          perSystem = forEachSystem (pkgs: {
            default = self.packages.${pkgs.stdenv.hostPlatform.system}.harness;
            harness = mkProgram pkgs "harness" "harness";
            hermes-auditd = pkgs.python3Packages.callPackage ./modules/auditd/package.nix { };
            hermes-image = pkgs.callPackage ./modules/hermes-image.nix {
              hermes-agent = hermes-agent.packages.${pkgs.stdenv.hostPlatform.system}.default;
            };
            tentaflake-tts = pkgs.python3Packages.callPackage ./modules/tts/package.nix { };
          });
          # What the harness boots for `--guest nixos`, with no agents yet. Added by name: see forEachSystem.
          guest-image =
            (import ./harness/guests/nixos.nix {
              tentaflake = self;
              wanted = {
                agents = [ ];
                host = { };
                secrets = null;
                network = lib.importJSON ./harness/guests/files/lan.json;
              };
            }).image;
        in
        perSystem
        // {
          x86_64-linux = perSystem.x86_64-linux // {
            inherit guest-image;
          };
        };

      apps = forEachSystem (pkgs: {
        verify = mkApp pkgs "verify" "harness verify" "Boot the reference host and attack it";
        test =
          mkApp pkgs "test" "pytest -p no:cacheprovider --rootdir=${self} ${self}/tests"
            "Run the whole test suite";
      });

      checks = forEachSystem (
        pkgs:
        import ./checks.nix {
          inherit
            lib
            nixpkgs
            pkgs
            programs
            self
            ;
        }
      );

      devShells = forEachSystem (pkgs: {
        default = pkgs.mkShell { packages = programs pkgs; };
      });

      templates.default = {
        path = ./template;
        description = "A host with two agents";
        welcomeText = "Write where you have tentaflake from into flake.nix; the rest is in its docs/nixos.md.";
      };

      formatter = forEachSystem (pkgs: pkgs.nixfmt-tree);
    };
}
