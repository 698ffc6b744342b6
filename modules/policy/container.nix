# How an agent's container is run, as the arguments that `docker run` and NixOS' `oci-containers` share
# (flags after Docker 26.1's reference). Anything that is not said here is Docker's default.
let
  inherit (builtins) toJSON;
  megabyte = 1048576;
in
{
  agent,
  published,
  secrets,
  slice,
}:
let
  fromEnvironment = builtins.any (secret: secret.as == "env") secrets;
  limit = agent.limits;
  # A fourth of the memory that its pages are charged to, so that a full /tmp is "no space", not an OOM kill.
  tmpSize = limit.memory / 4;
in
{
  name = agent.user;
  inherit (agent) image;
  pull = "missing";
  # Numbers, with the group: Docker then looks up nothing in the image's own /etc/passwd and adds no other group (C1).
  user = "${toString agent.uid}:${toString agent.gid}";
  hostname = agent.name;
  workdir = agent.stateDir;
  environment = agent.spec.environment // {
    HOME = agent.stateDir;
    HERMES_HOME = agent.stateDir;
    USER = agent.user;
    LOGNAME = agent.user;
  };
  ports = map (entry: "${toString entry.port}:${toString entry.target}/${entry.protocol}") published;
  networks = [ agent.network.name ];
  command = agent.spec.command;
  options = [
    "--ip=${agent.network.ipv4.address}"
    "--ip6=${agent.network.ipv6.address}"
    # C1, C2: nothing to gain and nothing to write but the mounts below.
    "--read-only"
    "--cap-drop=ALL"
    "--security-opt=no-new-privileges"
    # U2, D3: never another container's IPC or cgroup view, whatever the daemon's default is.
    "--ipc=private"
    "--cgroupns=private"
  ]
  # F3: an agent without a way out looks up no names either: a name server would be one. Docker asks the server that it is
  # told of from within the container, where nothing listens; else it asks the host's own on the loopback.
  ++ (if agent.egress == "none" then [ "--dns=127.0.0.1" ] else [ ])
  ++ [
    # D4. What an agent may have of what all of them together may have; see plan.nix.
    "--cgroup-parent=${slice}"
    # Swap equal to memory means no swap: an agent out of memory is killed instead of slowing down the host.
    "--pids-limit=${toString limit.pids}"
    "--memory=${toString limit.memory}"
    "--memory-swap=${toString limit.memory}"
    "--cpus=${toJSON limit.cpus}"
    # When the host itself runs short, an agent goes before a service of the host.
    "--oom-score-adj=500"
    # A core dump would be written by the host's handler, outside every limit and readable there.
    "--ulimit=core=0"
    # Of each process. Docker's default is a billion; what they hold is charged to the memory above.
    "--ulimit=nofile=16384"
    # /dev/shm is Docker's own tmpfs, which --read-only leaves writable.
    "--shm-size=${toString (if tmpSize < 64 * megabyte then tmpSize else 64 * megabyte)}"
    "--tmpfs=/tmp:rw,nosuid,nodev,size=${toString tmpSize},mode=1777"
    # At its own path, so that a path means the same on both sides. --mount, unlike --volume, fails when the source is
    # missing instead of making it as root.
    "--mount=type=bind,source=${agent.stateDir},target=${agent.stateDir}"
    # C4: the generated configuration, over a mount point that the activation makes in the state directory.
    "--mount=type=bind,source=${agent.config.path},target=${agent.stateDir}/config.yaml,readonly"
  ]
  # S1: each secret by itself, never their directory. A container keeps the value that it was started with.
  ++ map (secret: "--mount=type=bind,source=${secret.path},target=${secret.target},readonly") secrets
  # S2: `docker inspect` and the command line show all that --env and --env-file are given. secrets.nix has the init.
  ++ (if fromEnvironment then [ "--init" ] else [ ]);
}
