# This repository's flake without Nix fetching its inputs: from sources that are on the disk. agenix' module needs no other input;
# for hermes-agent, whose own inputs are many, stands any package: its image can be evaluated, and not built.
{
  nixpkgs,
  agenix,
  repository,
}:
let
  # As nixpkgs' flake.nix has them.
  lib = import (nixpkgs + "/lib") // {
    nixosSystem =
      arguments:
      import (nixpkgs + "/nixos/lib/eval-config.nix") (
        { system = null; } // arguments // { inherit lib; }
      );
  };
  legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
    system: import nixpkgs { inherit system; }
  );
  inputs = {
    nixpkgs = { inherit legacyPackages lib; };
    agenix.nixosModules.default = agenix;
    hermes-agent.packages = lib.mapAttrs (_: pkgs: { default = pkgs.hello; }) legacyPackages;
  };
  self = (import (repository + "/flake.nix")).outputs (inputs // { inherit self; }) // {
    inherit inputs;
  };
in
self
