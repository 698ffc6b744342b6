# The speech server: OpenAI's API for speech, with Piper's voices. Who may reach it is in the plan (modules/policy/speech.nix,
# `speech`); how it is confined is in unit.json and socket.json, which the Debian guest reads as well.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.tentaflake-tts;
  unit = builtins.fromJSON (builtins.readFile ./unit.json);
  socket = builtins.fromJSON (builtins.readFile ./socket.json);
  settingsFormat = pkgs.formats.json { };

  # A voice is a model and its settings, side by side.
  lessac =
    let
      part =
        suffix: hash:
        pkgs.fetchurl {
          url = "https://huggingface.co/rhasspy/piper-voices/resolve/v1.0.0/en/en_US/lessac/medium/en_US-lessac-medium.${suffix}";
          inherit hash;
        };
    in
    pkgs.linkFarm "piper-voice-en_US-lessac-medium" {
      "en_US-lessac-medium.onnx" = part "onnx" "sha256-Xv4J5pkCGHgnr2RuGm6dJp3udp+Yd9F7FrG0buqvAZ8=";
      "en_US-lessac-medium.onnx.json" =
        part "onnx.json" "sha256-7+GcQXvtBV8taZCCSMa6ZQ+hNbyGiw5quz2hgdq2kKA=";
    };

  given = lib.filterAttrs (_: value: value != null);
  settings =
    given {
      inherit (cfg) workers queue queuePerClient;
      default = cfg.defaultVoice;
    }
    // {
      voices = "${pkgs.symlinkJoin {
        name = "piper-voices";
        paths = cfg.voices;
      }}";
      inherit (cfg) aliases;
    };
in
{
  options.services.tentaflake-tts = {
    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.python3Packages.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.python3Packages.callPackage ./package.nix { }";
      description = "The package that has tentaflake-tts.";
    };

    speech = lib.mkOption {
      type = lib.types.nullOr (
        lib.types.submodule {
          options = {
            listen = lib.mkOption {
              type = lib.types.listOf lib.types.str;
              example = [
                "127.0.0.1:5001"
                "10.200.0.1:5001"
              ];
              description = "Addresses and ports: the host's own, and the gateways of agents.";
            };
            clients = lib.mkOption {
              type = lib.types.listOf lib.types.str;
              example = [ "10.200.0.0/29" ];
              description = "Networks, other than the host itself, that the kernel takes packets from.";
            };
          };
        }
      );
      default = null;
      example = lib.literalExpression "(policy.plan { agents = [ ]; }).speech";
      description = "Where it listens: `speech` of the plan. With null, there is no server.";
    };

    voices = lib.mkOption {
      type = lib.types.listOf lib.types.path;
      default = [ lessac ];
      defaultText = lib.literalMD "`en_US-lessac-medium`, from rhasspy/piper-voices";
      example = lib.literalExpression "[ ./voices ]";
      description = "Directories of voices in Piper's format, NAME.onnx and NAME.onnx.json.";
    };

    defaultVoice = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "en_US-lessac-medium";
      description = "The voice that OpenAI's names are, where `aliases` says nothing else. Null for the first by name.";
    };

    aliases = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      default = { };
      example = {
        echo = "en_GB-alan-medium";
      };
      description = "Other names of voices.";
    };

    workers = lib.mkOption {
      type = lib.types.nullOr (lib.types.ints.between 1 64);
      default = null;
      example = 8;
      description = "Sentences that are spoken at a time. Null for one on each processor, at most 4.";
    };

    queue = lib.mkOption {
      type = lib.types.nullOr (lib.types.ints.between 1 4096);
      default = null;
      example = 32;
      description = "Requests that are answered or wait; more are told to come again. Null for 128.";
    };

    queuePerClient = lib.mkOption {
      type = lib.types.nullOr (lib.types.ints.between 1 4096);
      default = null;
      example = 8;
      description = "Of them, those of one address. Null for 64.";
    };
  };

  config = lib.mkIf (cfg.speech != null) {
    systemd.sockets.tentaflake-tts = {
      description = socket.Unit.Description;
      wantedBy = [ socket.Install.WantedBy ];
      after = [ socket.Unit.After ];
      listenStreams = cfg.speech.listen;
      socketConfig = lib.mkMerge [
        socket.Socket
        { IPAddressAllow = [ "localhost" ] ++ cfg.speech.clients; }
      ];
    };

    systemd.services.tentaflake-tts = {
      description = unit.Unit.Description;
      startLimitIntervalSec = lib.toInt unit.Unit.StartLimitIntervalSec;
      requires = [ unit.Unit.Requires ];
      after = [ unit.Unit.After ];
      # Before the first request: loading a voice takes a second.
      wantedBy = [ "multi-user.target" ];
      serviceConfig = lib.mkMerge [
        unit.Service
        {
          ExecStart = "${lib.getExe cfg.package} --config ${settingsFormat.generate "tentaflake-tts.json" settings}";
        }
      ];
    };
  };
}
