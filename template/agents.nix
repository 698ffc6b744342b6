# The agents of this host. docs/agents.md of tentaflake has every field.
{ mkHermesAgent }:
[
  # Works on the public internet, and on nothing else.
  (mkHermesAgent {
    name = "coding";
    egress = "internet";
  })

  # Works on what it has.
  (mkHermesAgent { name = "writer"; })
]
