# A host of the harness as NixOS makes it, of Debian's packages. All paths are those of the tree that Nix builds in (workshop.py).
let
  nixpkgs = /mnt/nixpkgs;
  repository = /mnt/repository;
  flake = import ../flake-of.nix {
    inherit nixpkgs repository;
    agenix = /mnt/agenix/modules/age.nix;
  };
  inherit (flake.inputs.nixpkgs) lib;

  # nixpkgs' stdenv for a system that has its own tools, without the stage that builds one that is missing there.
  stages =
    arguments:
    let
      native = import (nixpkgs + "/pkgs/stdenv/native") (removeAttrs arguments [ "crossOverlays" ]);
      withLibc = stage: stage // { stdenv = stage.stdenv // { cc = stage.stdenv.cc // { libc = libc; }; }; };
      # What modules read of the compiler's C library.
      libc =
        derivation {
          name = "libc-debian";
          system = "x86_64-linux";
          builder = "/bin/sh";
          args = [
            "-c"
            "/usr/bin/mkdir -p $out/etc && /usr/bin/cp /etc/rpc $out/etc"
          ];
        }
        // {
          pname = "glibc";
          version = "0";
          meta = { };
          bin = libc;
          dev = libc;
        };
    in
    [
      (lib.elemAt native 0)
      (former: withLibc (lib.elemAt native 1 former))
    ];
  pkgs = import nixpkgs {
    system = "x86_64-linux";
    stdenvStages = stages;
    overlays = [ (import ./packages.nix) ];
  };
in
import ../../nixos.nix {
  tentaflake = flake;
  wanted = builtins.fromJSON (builtins.readFile /mnt/given/host.json);
  modules = [
    ./machine.nix
    { nixpkgs.pkgs = pkgs; }
  ];
}
