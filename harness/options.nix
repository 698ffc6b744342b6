# The options of this flake's modules with what is said of them, for docs/options.md.
{ nixpkgs, repository }:
let
  lib = import (nixpkgs + "/lib");
  evaluated = lib.evalModules {
    modules = [
      (repository + "/modules")
      {
        _module.check = false; # NixOS' own options are not here
        _module.args.pkgs = { };
      }
    ];
  };
  text = value: value.text or value;
  show = option: {
    inherit (option) name type;
    description = text option.description;
    default = if option ? default then text option.default else null;
    example = if option ? example then text option.example else null;
  };
  isShown = option: option.visible && !option.internal && !lib.hasPrefix "_module" option.name;
  # This flake's own before those of the programs.
  sorted = lib.partition (option: lib.hasPrefix "tentaflake." option.name) (
    lib.filter isShown (lib.optionAttrSetToDocList evaluated.options)
  );
in
map show (sorted.right ++ sorted.wrong)
