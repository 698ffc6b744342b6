throw "hardware-configuration.nix: describe your machine with nixos-generate-config --show-hardware-config > hardware-configuration.nix"
