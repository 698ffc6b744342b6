# The real agent as a container image that starts under any uid, as an agent's container has to (C1); the official one starts as
# root. Nothing has to be writable but the state directory and /tmp. Loaded by tentaflake.imageStreams.
{
  lib,
  dockerTools,
  coreutils,
  hermes-agent,
}:
dockerTools.streamLayeredImage {
  # As modules/policy/images.nix has it.
  name = "tentaflake.invalid/hermes";
  tag = hermes-agent.version;
  contents = [
    coreutils
    dockerTools.binSh
    dockerTools.caCertificates
    dockerTools.usrBinEnv
    hermes-agent
  ];
  config = {
    Entrypoint = [ (lib.getExe hermes-agent) ];
    # Lives and waits for messages and scheduled work, with nothing configured as well.
    Cmd = [
      "gateway"
      "run"
    ];
    Env = [
      "PATH=/bin"
      "LANG=C.UTF-8"
    ];
  };
}
