# What of the NixOS guest is otherwise where its packages are Debian's. docs/nixos.md has the table of what is true to NixOS.
{ lib, pkgs, ... }:
let
  speechWheels = "/usr/lib/tentaflake/speech-wheels";

  # A program of this repository: Debian's Python runs its modules, of which each command is one.
  python =
    name: source: path: commands:
    pkgs.runCommand name { meta.mainProgram = name; } (
      ''
        mkdir -p $out/bin $out/lib
        cp -r ${
          lib.cleanSourceWith {
            src = source;
            filter = file: _: baseNameOf file != "__pycache__";
          }
        } $out/lib/${baseNameOf source}
      ''
      + lib.concatStrings (
        lib.mapAttrsToList (command: module: ''
          cat > $out/bin/${command} <<END
          #!/bin/sh
          PYTHONPATH=$out/lib${path} exec /usr/bin/python3 -P -m ${module} "\$@"
          END
          chmod +x $out/bin/${command}
        '') commands
      )
    );
in
{
  nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform;

  # The kernel and its initrd are beside the system.
  boot.initrd.enable = false;
  boot.kernel.enable = false;
  boot.kernelPackages = lib.makeExtensible (_: {
    inherit (pkgs) stdenv;
    inherit (pkgs.debianKernel) kernelAtLeast kernelOlder;
    kernel = pkgs.debianKernel;
  });

  # Debian's programs find their loader, their shell and env(1) where Debian has them.
  environment.ldso = lib.mkForce "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
  environment.ldso32 = lib.mkForce null;
  environment.binsh = lib.mkForce "/usr/bin/bash";
  environment.usrbinenv = "/usr/libexec/env"; # a copy (workshop.py): NixOS makes a link to it, in the original's place
  systemd.services.dhcpcd.serviceConfig.SystemCallFilter = lib.mkForce [ ]; # Debian's drops privileges that it does not have
  systemd.services.sshd.serviceConfig.RuntimeDirectory = "sshd"; # where Debian's OpenSSH separates its privileges

  services.hermes-auditd.package = python "hermes-auditd" ../../../../modules/auditd/hermes_auditd "" {
    hermes-audit = "hermes_auditd.cli";
    hermes-auditd = "hermes_auditd.daemon";
  };
  services.tentaflake-tts.package =
    python "tentaflake-tts" ../../../../modules/tts/tentaflake_tts ":${speechWheels}"
      {
        tentaflake-tts = "tentaflake_tts.server";
      };
  systemd.tmpfiles.settings."20-nix-daemon"."/nix/var/nix/daemon-socket".d.mode = "0755"; # which nixpkgs' Nix has itself
  systemd.tmpfiles.settings."20-guest-speech" = lib.mkForce { }; # they are in the tree
  services.tentaflake-tts.voices = [ "/usr/lib/tentaflake/voices" ];

  # What is not built: documentation, locales, tools for a host that is changed by hand, and programs in Rust that no host needs.
  documentation = {
    enable = false;
    doc.enable = false;
    info.enable = false;
    man.enable = false;
    nixos.enable = false;
  };
  boot.bcache.enable = false;
  boot.enableContainers = false;
  environment.defaultPackages = lib.mkForce [ ];
  environment.stub-ld.enable = false;
  fonts.fontconfig.enable = false;
  i18n.defaultLocale = "C.UTF-8";
  i18n.glibcLocales = pkgs.emptyDirectory;
  i18n.supportedLocales = lib.mkForce [ ];
  networking.nftables.checkRuleset = false; # at build time, by a kernel as a library
  programs.command-not-found.enable = false;
  programs.nano.enable = false;
  programs.ssh.setXAuthLocation = false;
  security.pam.services.su-l.rootOK = true; # Debian's su asks under this name for a login shell
  security.sudo.enable = false;
  services.dbus.implementation = "dbus";
  services.logrotate.enable = false;
  services.lvm.enable = false;
  services.nscd.enable = false;
  services.speechd.enable = false;
  services.timesyncd.enable = false;
  system.disableInstallerTools = true;
  system.nssModules = lib.mkForce [ ];
  system.tools.nixos-rebuild.enable = false;
  systemd.coredump.enable = false;
  systemd.services.lastlog2-import.enable = lib.mkForce false; # of a file that only older hosts have
  systemd.shutdownRamfs.enable = false;
  systemd.suppressedSystemUnits = [ "systemd-vconsole-setup.service" ];
  xdg = lib.genAttrs [ "autostart" "icons" "menus" "mime" "sounds" ] (_: {
    enable = false;
  });
}
