# The NixOS guest: hosts of this flake as the harness boots them, and what it boots. `given` is a JSON file that nixos.py writes:
# { agents (specs), host (settings), secrets (a directory of age files, or null), network (addresses of the LAN),
#   module (the text of one more, or nothing) }.
{
  flake ? null,
  given ? null,
  tentaflake ? builtins.getFlake flake,
  wanted ? builtins.fromJSON (builtins.readFile given),
  modules ? [ ],
}:
let
  inherit (tentaflake.inputs) nixpkgs;
  inherit (nixpkgs) lib;

  host = lib.nixosSystem {
    modules = modules ++ [
      tentaflake.nixosModules.default
      ./files/nixos.nix
      (if wanted.module or "" == "" then { } else import (builtins.toFile "module.nix" wanted.module))
      {
        _module.args = { inherit (wanted) network; };
        tentaflake = {
          agents = tentaflake.lib.byName wanted.agents;
          inherit (wanted) host;
          secretsRoot = lib.mkIf (wanted.secrets != null) (
            builtins.path {
              name = "secrets";
              path = wanted.secrets;
            }
          );
        };
      }
    ];
  };
  inherit (host) pkgs;
  inherit (host.config.system.build) toplevel;
in
{
  inherit toplevel;

  # What its initrd would have and load.
  initrdModules =
    host.config.boot.initrd.availableKernelModules ++ host.config.boot.initrd.kernelModules;

  # kernel, initrd, disk.raw and a static busybox, for harness.vm.image.
  image = pkgs.runCommand "tentaflake-nixos-guest" { } ''
    mkdir $out
    cp ${host.config.system.build.kernel}/${host.config.system.boot.loader.kernelFile} $out/vmlinuz
    cp ${host.config.system.build.initialRamdisk}/${host.config.system.boot.loader.initrdFile} $out/initrd
    cp ${pkgs.pkgsStatic.busybox}/bin/busybox $out/busybox
    ln -s ${
      # nixos/lib/make-ext4-fs.nix: made without a machine, with the store's database beside it in /nix-path-registration.
      pkgs.callPackage "${nixpkgs}/nixos/lib/make-ext4-fs.nix" {
        storePaths = [ toplevel ];
        volumeLabel = "root";
        populateImageCommands = ''
          mkdir -p files/nix/var/nix/profiles
          ln -s ${toplevel} files/nix/var/nix/profiles/system-1-link
          ln -s system-1-link files/nix/var/nix/profiles/system
        '';
      }
    } $out/disk.raw
    echo ${toplevel} > $out/toplevel
  '';
}
