# The flake's outputs with stand-ins for its inputs: nixpkgs' lib is real, and NixOS is what options.nix declares.
{
  nixpkgs,
  repository,
  template, # the directory of the template's files, as somebody has them
}:
let
  lib = import (nixpkgs + "/lib") // {
    nixosSystem =
      { modules }:
      lib.evalModules {
        modules = modules ++ [
          ./options.nix
          {
            # What a machine says of its disks and boot loader is NixOS' own.
            freeformType = lib.types.lazyAttrsOf lib.types.anything;
            _module.args.pkgs = import ./packages.nix { inherit lib; } // {
              stdenv.hostPlatform.system = "x86_64-linux";
            };
            virtualisation.docker.package = (import ./packages.nix { inherit lib; }).docker;
          }
        ];
      };
  };
  inputs = {
    nixpkgs = {
      inherit lib;
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: {
        callPackage = _: _: (import ./packages.nix { inherit lib; }).docker;
        stdenv.hostPlatform = lib.systems.elaborate system;
      });
    };
    agenix.nixosModules.default.options.agenix = lib.mkOption { default = "is here"; };
    hermes-agent = { };
  };
  call =
    directory: inputs:
    let
      self = (import (directory + "/flake.nix")).outputs (inputs // { inherit self; });
    in
    self;
  flake = call repository inputs;
  user = call (/. + template) {
    inherit (inputs) nixpkgs;
    tentaflake = flake;
  };
  guest = lib.nixosSystem {
    modules = [
      flake.nixosModules.default
      (repository + "/harness/guests/files/nixos.nix")
      {
        _module.args.network = lib.importJSON (repository + "/harness/guests/files/lan.json");
        tentaflake.agents.coding = { };
        tentaflake.host.tailnetInterface = "tailscale0";
      }
    ];
  };
  configured =
    host: { inherit (host.config.tentaflake) plan; } // { inherit (host.config) assertions; };
in
{
  inherit (flake) plans;
  template = {
    inherit (user) plans;
    configurations = lib.mapAttrs (_: configured) user.nixosConfigurations;
  };
  configurations = lib.mapAttrs (_: configured) flake.nixosConfigurations;
  platforms = lib.mapAttrs (_: host: host.config.nixpkgs.hostPlatform) flake.nixosConfigurations;
  guest = {
    inherit (guest.config) assertions;
    shell = guest.config.systemd.services.tentaflake-shell.serviceConfig;
    disk = guest.config.fileSystems."/";
    tailscale = guest.config.services.tailscale.enable;
    resolver = guest.config.services.dnsmasq.settings.resolv-file;
    interfaces = lib.attrNames guest.config.networking.interfaces;
  };
  imageStreams = lib.attrNames flake.nixosConfigurations.agent-host.config.tentaflake.imageStreams;
  modules = lib.attrNames flake.nixosModules;
  withAgenix = lib.filter (
    name: (lib.nixosSystem { modules = [ flake.nixosModules.${name} ]; }).config ? agenix
  ) (lib.attrNames flake.nixosModules);
  perSystem = lib.genAttrs [
    "apps"
    "checks"
    "devShells"
    "formatter"
    "packages"
  ] (output: lib.attrNames flake.${output});
  packages = lib.mapAttrs (_: lib.attrNames) flake.packages;
  checks = lib.mapAttrs (_: lib.attrNames) flake.checks;
}
