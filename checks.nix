# What `nix flake check` looks at: all that needs no machine of the harness. `nix run .#test` attacks.
{
  lib,
  nixpkgs,
  pkgs,
  programs,
  self,
}:
let
  # Evaluates a whole host, and builds nothing of it.
  evaluate =
    name: host:
    pkgs.writeText name (builtins.unsafeDiscardStringContext host.config.system.build.toplevel.drvPath);

  # In a copy, because Python and pytest write beside what they run; ends with its arguments to come.
  pytest = lib.concatStringsSep " && " [
    "copy=$(mktemp -d)"
    "cp --recursive --no-preserve=mode ${self}/. $copy"
    "cd $copy"
    "HOME=$copy python3 -m pytest -p no:cacheprovider -p harness.plugin -c pyproject.toml --rootdir=. --nixpkgs ${nixpkgs}"
  ];
in
{
  # The modules come to the plan that the harness attacks.
  plan =
    assert lib.assertMsg (
      self.nixosConfigurations.agent-host.config.tentaflake.plan == self.plans.agent-host
    ) "nixosConfigurations.agent-host has another plan than plans.agent-host";
    pkgs.writeText "plan.json" (builtins.toJSON self.plans.agent-host);

  hosts = pkgs.linkFarmFromDrvs "hosts" (lib.mapAttrsToList evaluate self.nixosConfigurations);

  inherit (self.packages.${pkgs.stdenv.hostPlatform.system}) hermes-auditd;

  # As the formatter leaves it.
  formatting = pkgs.runCommand "formatting" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    find ${self} -name '*.nix' -exec nixfmt --check {} +
    touch $out
  '';

  tests = pkgs.runCommand "tests" { nativeBuildInputs = programs pkgs; } ''
    ${pytest} \
      tests/nixos tests/policy/test_bad_specs.py tests/policy/test_plan.py tests/policy/test_stability.py
    touch $out
  '';
}
# A test's machine wants KVM, which builders for ARM seldom have.
// lib.optionalAttrs pkgs.stdenv.hostPlatform.isx86_64 {
  # With root, nftables and network namespaces, which the sandbox of a build has not: packets meet the firewall here.
  suite = pkgs.testers.runNixOSTest {
    name = "suite";
    nodes.machine = {
      environment.systemPackages = programs pkgs;
      virtualisation.cores = 2;
      virtualisation.memorySize = 2048;
    };
    testScript = ''
      machine.succeed("${pytest} tests/policy tests/nixos", timeout=3600)
    '';
  };
}
