# The agents' secrets: the plan's, for agenix, which decrypts them at activation to where the containers mount them from.
# It takes agenix' own module beside this one.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.tentaflake;
  inherit (cfg) plan;

  # In the store by itself: as a part of the directory, it would have another path whenever any file there has changed.
  ageFile =
    secret:
    let
      file = cfg.secretsRoot + "/${secret.file}";
    in
    if builtins.pathExists file then
      builtins.path {
        name = lib.strings.sanitizeDerivationName (baseNameOf secret.file);
        path = file;
      }
    else
      file;

  # agenix goes on when a secret cannot be decrypted; its agent then lacks it and must not start (S3).
  requireSecrets =
    agent:
    pkgs.writeShellScript "secrets-of-${agent.name}" (
      lib.concatMapStrings (secret: ''
        [ -e ${lib.escapeShellArg secret.path} ] || {
          echo ${lib.escapeShellArg "agent ${agent.name} does not start without its secret ${secret.name}"} >&2
          exit 1
        }
      '') agent.secrets
    );

  mkService =
    agent:
    lib.nameValuePair agent.service.name {
      # A running container keeps the value that it was started with.
      restartTriggers = map ageFile agent.secrets;
      serviceConfig.ExecCondition = requireSecrets agent;
    };
in
{
  imports = [ ./options.nix ];

  options.tentaflake.secretsRoot = lib.mkOption {
    type = lib.types.path;
    example = lib.literalExpression "./.";
    description = ''
      The directory that the `file` of each agent's secrets is relative to: the flake's own. What is below it gets into
      the Nix store, which every user can read: age files are encrypted, nothing else belongs there.
    '';
  };

  config = lib.mkIf (plan.secrets != { }) {
    age.identityPaths = [ plan.host.secretsIdentity ];
    age.secrets = lib.mapAttrs (_: secret: {
      file = ageFile secret;
      inherit (secret)
        path
        mode
        owner
        group
        ;
    }) plan.secrets;

    systemd.services = lib.listToAttrs (
      map mkService (lib.filter (agent: agent.secrets != [ ]) (lib.attrValues plan.agents))
    );
  };
}
