# hermes-auditd and hermes-audit, as nixpkgs builds a Python program: python3Packages.callPackage ./package.nix { }.
{
  lib,
  buildPythonApplication,
  setuptools,
}:
buildPythonApplication {
  pname = "hermes-auditd";
  version = "0.1.0";
  pyproject = true;
  src = lib.fileset.toSource {
    root = ./.;
    fileset = lib.fileset.unions [
      ./pyproject.toml
      ./hermes_auditd
    ];
  };
  build-system = [ setuptools ];
  pythonImportsCheck = [ "hermes_auditd.daemon" ];
  meta = {
    description = "Records what happens in the agents' state directories";
    license = lib.licenses.mit;
    mainProgram = "hermes-audit";
  };
}
