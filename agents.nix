# The agents of the reference host, `agent-host`. docs/agents.md lists every field.
{ mkHermesAgent }:
[
  # Writes code: on the public internet, never on a private network.
  (mkHermesAgent {
    name = "coding";
    egress = "internet";
    memory = "2g";
    cpus = 2;
    pids = 512;
    disk = "1g";
    secrets = [
      {
        name = "coding-model-key";
        file = "secrets/coding-model-key.age";
        as = "env";
        variable = "MODEL_API_KEY";
      }
      {
        name = "search-token";
        file = "secrets/search-token.age";
        shared = true;
      }
    ];
    settings = {
      agent.max_turns = 40;
      terminal.backend = "local";
    };
  })

  # Reads what it is pointed to, speaks, and answers on the tailnet.
  (mkHermesAgent {
    name = "research";
    egress = [
      {
        network = "198.51.100.0/24";
        ports = [
          80
          443
        ];
      }
      {
        network = "2001:db8:100::/48";
        ports = [ 443 ];
      }
    ];
    publish = [ 8080 ];
    tts = true;
    memory = "1g";
    secrets = [
      {
        name = "research-model-key";
        file = "secrets/research-model-key.age";
      }
      {
        name = "search-token";
        file = "secrets/search-token.age";
        shared = true;
      }
    ];
    settings.agent.max_turns = 20;
  })

  # Works on what it has: no way out.
  (mkHermesAgent {
    name = "writer";
    memory = "512m";
    cpus = 0.5;
    pids = 128;
    disk = "64m";
    secrets = [
      {
        name = "writer-model-key";
        file = "secrets/writer-model-key.age";
      }
    ];
    settings.agent.max_turns = 10;
  })
]
