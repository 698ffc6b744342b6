# Does every agent still run that Docker takes for running? A script for sh(1), with ps(1), tr(1), docker(1), grep(1) and
# systemctl(1) in PATH, run from time to time. Docker hears that a container has ended from containerd, and never hears it of one
# that ends while containerd is away or Docker has not found it again (C6): for such an agent, `docker run` would wait for ever.
{ agents }:
let
  inherit (builtins) concatStringsSep map toString;
  look =
    agent: "look ${agent.name} ${toString agent.uid} ${agent.container.name} ${agent.service.name}.service";
in
''
  # Whom no process has the user of is asked for: a runtime may give a container's processes another.
  uids=" $(ps -e -o euid= | tr '\n' ' ') "
  # Is there the process that Docker knows, or one of another with its number?
  runs() {
    [ -e "/proc/$2" ] && grep -qsF "$3" "/proc/$2/cgroup"
  }
  look() {
    case "$uids" in
      *" $2 "*) return ;;
    esac
    systemctl is-active --quiet "$4" || return 0 # nor is Docker, perhaps, which the question would start
    state=$(docker inspect --format '{{ .State.Running }} {{ .State.Pid }} {{ .Id }}' "$3" 2> /dev/null) || return 0
    case "$state" in
      true*) runs $state || restart "$1" "$4" ;;
    esac
  }
  restart() {
    echo "agent $1 runs no more, and Docker has not noticed: starting it again" >&2
    systemctl try-restart --no-block "$2"
  }
  ${concatStringsSep "\n" (map look agents)}
''
