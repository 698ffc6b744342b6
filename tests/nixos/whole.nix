# The flake's hosts, whole, with NixOS itself. agenix' own module where its source is given, else its options as options.nix has them.
{
  nixpkgs,
  repository,
  agenix ? null,
}:
let
  declared =
    { lib, ... }:
    {
      options = { inherit ((import ./options.nix { inherit lib; }).options) age; };
    };

  self = import (repository + "/harness/guests/files/flake-of.nix") {
    inherit nixpkgs repository;
    agenix = if agenix == null then declared else agenix + "/modules/age.nix";
  };
  inherit (self.inputs.nixpkgs) lib;

  shown =
    { config, ... }:
    {
      inherit (config) warnings;
      inherit (config.tentaflake) plan;
      failed = map (assertion: assertion.message) (
        lib.filter (assertion: !assertion.assertion) config.assertions
      );
      system = config.nixpkgs.hostPlatform.system;
      toplevel = builtins.unsafeDiscardStringContext config.system.build.toplevel.drvPath;
      services = lib.attrNames config.systemd.services;
      # Of those that this flake's modules have a part in.
      units = lib.mapAttrs (_: unit: builtins.unsafeDiscardStringContext unit.text) (
        lib.filterAttrs (
          name: _: lib.hasInfix "hermes" name || lib.hasInfix "tentaflake" name || name == "nftables.service"
        ) config.systemd.units
      );
      checks = lib.mapAttrs (
        _: text: builtins.unsafeDiscardStringContext text
      ) config.system.preSwitchChecks;
      initrd = config.boot.initrd.kernelModules;
      root = config.fileSystems."/".options;
      mayAskNix = config.nix.settings.allowed-users;
      wheel = config.users.groups.wheel.members;
      unmanaged = {
        dhcpcd = config.networking.dhcpcd.denyInterfaces;
        networkmanager = config.networking.networkmanager.unmanaged;
        networkd = config.systemd.network.networks."05-tentaflake".matchConfig.Name;
      };
    };
in
lib.mapAttrs (_: shown) self.nixosConfigurations
