# A stand-in for nixpkgs' packages: nothing is built, and a script's path has its text in front, so that a test can read and run it.
{ lib }:
let
  package = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/${name}";
    meta.mainProgram = name;
  };
  script = name: text: package name // { outPath = "«${text}»"; };
  names = [
    "coreutils"
    "crun"
    "docker"
    "findutils"
    "gnused"
    "iproute2"
    "jq"
    "linuxquota"
    "nftables"
    "procps"
    "python3"
    "util-linux"
  ];
in
lib.genAttrs names package
// {
  inherit package;
  nftables = package "nftables" // {
    meta.mainProgram = "nft";
  };
  fetchurl = { url, ... }: package (baseNameOf url);
  linkFarm = name: _: package name;
  symlinkJoin = { name, ... }: package name;
  writeShellScript = script;
  writeText = script;
  writeShellApplication = { name, text, ... }: script name text;
  formats.json = _: {
    type = lib.types.attrsOf lib.types.anything;
    generate = name: value: package name // { inherit value; };
  };
  python3Packages.callPackage = file: _: package (baseNameOf (dirOf file));
}
