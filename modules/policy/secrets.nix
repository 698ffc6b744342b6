# Secrets: where a value is on the host (agenix's layout), where in its agent's container, and how it becomes a variable.
{
  # A secret of the spec as the plan has it. Two agents that share one have a copy each, so that each owns its own (S1);
  # "@" stands in no name. It depends on this agent alone: another that comes or goes changes no path (U3).
  forAgent =
    agent: secret:
    let
      id = if secret.shared then "${secret.name}@${agent}" else secret.name;
    in
    {
      inherit id;
      inherit (secret)
        name
        file
        as
        variable
        shared
        ;
      path = "/run/agenix/${id}";
      target =
        if secret.as == "env" then "/run/environment/${secret.variable}" else "/run/secrets/${secret.name}";
    };

  # In place of Docker's own init: runs inside the container, as the agent, and becomes the image's own command, which
  # Docker gives behind "--". The values are then where the agent's processes are, and nowhere else (S2).
  init = {
    path = "/etc/tentaflake/container-init";
    mode = "0555";
    content = ''
      #!/bin/sh
      if [ "$1" = --version ]; then # Docker asks
        echo tentaflake version 1
        exit
      fi
      for tentaflake_file in /run/environment/*; do
        if [ -e "$tentaflake_file" ]; then
          tentaflake_value=$(cat "$tentaflake_file") || exit 1 # without the newlines at the end
          export "''${tentaflake_file##*/}=$tentaflake_value"
        fi
      done
      shift
      exec "$@"
    '';
  };
}
