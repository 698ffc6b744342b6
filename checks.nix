# What `nix flake check` looks at: all that needs no machine, because the sandbox of a build has none. `nix run .#test` attacks.
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

  tests = pkgs.runCommand "tests" { nativeBuildInputs = programs pkgs; } ''
    cp --recursive --no-preserve=mode ${self} source
    cd source
    export HOME=$TMPDIR
    python3 -m pytest -p no:cacheprovider -p harness.plugin -c pyproject.toml --rootdir=. --nixpkgs ${nixpkgs} \
      tests/nixos tests/policy/test_bad_specs.py tests/policy/test_plan.py tests/policy/test_stability.py
    touch $out
  '';
}
