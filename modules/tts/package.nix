# tentaflake-tts, as nixpkgs builds a Python program: python3Packages.callPackage ./package.nix { }.
{
  lib,
  buildPythonApplication,
  setuptools,
  fastapi,
  numpy,
  onnxruntime,
  piper-tts,
  prometheus-client,
  pydantic,
  soundfile,
  soxr,
  toPythonModule,
  uvicorn,
}:
buildPythonApplication {
  pname = "tentaflake-tts";
  version = "0.1.0";
  pyproject = true;
  src = lib.fileset.toSource {
    root = ./.;
    fileset = lib.fileset.unions [
      ./pyproject.toml
      ./tentaflake_tts
    ];
  };
  build-system = [ setuptools ];
  dependencies = [
    fastapi
    numpy
    onnxruntime
    # nixpkgs has it as a program, with what it takes to train voices.
    (toPythonModule (
      piper-tts.override {
        withAlignment = false;
        withHTTP = false;
        withTrain = false;
      }
    ))
    prometheus-client
    pydantic
    soundfile
    soxr
    uvicorn
  ];
  pythonImportsCheck = [ "tentaflake_tts.server" ];
  meta = {
    description = "Speech server that answers OpenAI's clients with Piper's voices";
    license = lib.licenses.gpl3Plus; # Piper's: it is imported
    mainProgram = "tentaflake-tts";
  };
}
