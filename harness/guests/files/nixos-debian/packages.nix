# An overlay for nixpkgs: packages that only link to what Debian's packages have installed in /usr, where Nix builds (the tree of
# harness/guests/workshop.py) and in the guest. What NixOS' own modules build, they build of these.
final: prev:
let
  inherit (prev) lib;
  inherit (builtins) elemAt head match;

  # Debian's version of a package, without its epoch and its own revision: "1:29.6.0-2" is 29.6.0.
  versions =
    let
      fields =
        paragraph:
        match "(.*\n)?Package: ([^\n]+)\n.*" paragraph ++ match ".*\nVersion: ([0-9]+:)?([0-9.]*[0-9]).*" paragraph;
      installed = lib.filter (paragraph: match ".*\nVersion: .*" paragraph != null) (
        lib.splitString "\n\n" (builtins.readFile /var/lib/dpkg/status)
      );
    in
    lib.listToAttrs (
      map (paragraph: lib.nameValuePair (elemAt (fields paragraph) 1) (elemAt (fields paragraph) 3)) installed
    );

  # Programs, units and their like of Debian's packages, each a link; units are copies, since NixOS patches some of them.
  # `more` is a script that adds to $out and the other outputs.
  debian =
    pname:
    {
      packages ? [ pname ],
      outputs ? [ "out" ],
      more ? "",
      mainProgram ? pname,
      passthru ? { },
    }:
    let
      package = final.stdenvNoCC.mkDerivation {
        inherit pname outputs passthru;
        version = versions.${head packages};
        dontUnpack = true;
        dontFixup = true;
        installPhase = ''
          for output in $outputs; do mkdir -p ''${!output}; done
          mkdir $out/bin
          ln -s bin $out/sbin
          for package in ${toString packages}; do
            dpkg-query --listfiles $package | while read -r path; do
              if [ -d "$path" ]; then continue; fi
              case $path in
                /usr/bin/* | /usr/sbin/* | /bin/* | /sbin/*)
                  ln -sfn "/usr/''${path#/usr/}" "$out/bin/''${path##*/}"
                  ;;
                /usr/lib/systemd/system/* | /usr/lib/systemd/user/* | /usr/lib/tmpfiles.d/* | /usr/lib/sysusers.d/* | \
                  /usr/lib/sysctl.d/* | /usr/lib/udev/* | /usr/share/dbus-1/*)
                  mkdir -p "$out/$(dirname "''${path#/usr/}")"
                  cp --no-dereference "$path" "$out/''${path#/usr/}"
                  ;;
              esac
            done
          done
          ${more}
        '';
        meta = {
          inherit mainProgram;
          priority = 5;
          badPlatforms = [ ];
        };
      };
      same = package // {
        override = _: same;
        overrideAttrs = _: same;
      };
    in
    same;

  # The same under the name of one Debian package.
  plain = names: lib.genAttrs names (name: debian name { });

  # One of Debian's, whose program has its name, under nixpkgs' name.
  tool =
    pname: mainProgram:
    debian pname {
      packages = [ mainProgram ];
      inherit mainProgram;
    };

  # Outputs that are the first one under another name.
  alias = outputs: lib.concatMapStrings (output: "rmdir \$${output}; ln -s $out \$${output}\n") outputs;

  # What is evaluated and never used.
  empty =
    pname:
    final.runCommand pname {
      version = "0";
      meta.mainProgram = pname;
      passthru.shellPath = "/bin/${pname}";
    } "mkdir $out";
  unused = names: lib.genAttrs names empty;

  # glibc's list of what a program with more rights than its caller must not find in its environment (ld.so(8)).
  unsecureVariables = [
    "GCONV_PATH"
    "GETCONF_DIR"
    "GLIBC_TUNABLES"
    "HOSTALIASES"
    "LD_AUDIT"
    "LD_DEBUG"
    "LD_DEBUG_OUTPUT"
    "LD_DYNAMIC_WEAK"
    "LD_HWCAP_MASK"
    "LD_LIBRARY_PATH"
    "LD_ORIGIN_PATH"
    "LD_PRELOAD"
    "LD_PROFILE"
    "LD_SHOW_AUXV"
    "LOCALDOMAIN"
    "LOCPATH"
    "MALLOC_TRACE"
    "NIS_PATH"
    "NLSPATH"
    "RESOLV_HOST_CONF"
    "RES_OPTIONS"
    "TMPDIR"
    "TZDIR"
  ];
in
plain [
  "acl"
  "age"
  "attr"
  "bzip2"
  "containerd"
  "cpio"
  "crun"
  "curl"
  "dash"
  "diffutils"
  "dosfstools"
  "e2fsprogs"
  "file"
  "findutils"
  "gzip"
  "jq"
  "kmod"
  "less"
  "nmap"
  "openssl"
  "patchelf"
  "procps"
  "psmisc"
  "runc"
  "wireguard-tools"
  "zstd"
]
// unused [
  "apparmor-parser"
  "bash-completion"
  "fish"
  "fuse3"
  "gnupatch"
  "git"
  "glibcLocales"
  "glibcLocalesUtf8"
  "groff"
  "kbd"
  "kexec-tools"
  "libedit"
  "linuxHeaders"
  "logrotate"
  "make-initrd-ng"
  "makeInitrdNGTool"
  "man-db"
  "mdadm"
  "mkpasswd"
  "nano"
  "netcat"
  "nix-bash-completions"
  "nixos-init"
  "rsync"
  "strace"
  "sudo"
  "texinfo"
  "texinfoInteractive"
  "time"
  "xauth"
  "xonsh"
  "zsh"
]
// {
  bash = debian "bash" {
    more = "ln -s /usr/bin/bash $out/bin/sh";
    passthru.shellPath = "/bin/bash";
  };
  bashInteractive = final.bash;
  bashNonInteractive = final.bash;
  runtimeShellPackage = final.bash;
  bind = empty "bind" // {
    dnsutils = empty "dnsutils";
    host = empty "host";
  };
  busybox = debian "busybox" { packages = [ "busybox-static" ]; };
  cacert = debian "nss-cacert" {
    packages = [ "ca-certificates" ];
    outputs = [
      "out"
      "unbundled"
    ];
    more = "install -D /etc/ssl/certs/ca-certificates.crt $out/etc/ssl/certs/ca-bundle.crt";
    passthru = {
      noBundle = true;
      p11kit = empty "p11kit";
    };
  };
  coreutils = debian "coreutils" {
    mainProgram = "ls";
    more = "ln -s /usr/bin/kill $out/bin/kill"; # which Debian has from procps
  };
  coreutils-full = final.coreutils;
  dbus = debian "dbus" {
    packages = [
      "dbus"
      "dbus-bin"
      "dbus-daemon"
      "dbus-session-bus-common"
      "dbus-system-bus-common"
      "dbus-user-session"
    ];
    outputs = [
      "out"
      "daemon"
      "lib"
    ];
    more = ''
      mkdir -p $out/libexec
      ln -s /usr/lib/dbus-1.0/dbus-daemon-launch-helper $out/libexec
      ${alias [ "daemon" ]}
    '';
  };
  dhcpcd = debian "dhcpcd" { packages = [ "dhcpcd-base" ]; };
  dnsmasq = debian "dnsmasq" { packages = [ "dnsmasq-base" ]; };
  # As nixpkgs has it: what the daemon starts is in its own PATH.
  docker = debian "docker" {
    packages = [
      "docker.io"
      "docker-cli"
    ];
    more = ''
      rm $out/bin/dockerd
      cat > $out/bin/dockerd <<END
      #!/bin/sh
      PATH=/usr/bin:/usr/sbin:\$PATH exec /usr/sbin/dockerd "\$@"
      END
      chmod +x $out/bin/dockerd
    '';
    passthru.moby = final.docker;
  };
  getconf = final.glibc;
  getent = final.glibc;
  glibc = debian "glibc" {
    packages = [
      "libc-bin"
      "libc6"
    ];
    outputs = [
      "out"
      "bin"
      "dev"
      "static"
    ];
    more = alias [ "bin" ];
  };
  srcOnly = attrs: if attrs.pname or "" == "glibc" then final.glibcSource else prev.srcOnly attrs;
  # Of which NixOS' set-uid wrapper takes one header.
  glibcSource = final.stdenvNoCC.mkDerivation {
    name = "glibc-source";
    unpackPhase = ''
      mkdir -p source/sysdeps/generic
      cd source
      cp ${
        final.writeText "unsecvars.h" "#define UNSECURE_ENVVARS ${
          lib.concatMapStringsSep " " (name: "\"${name}\\0\"") unsecureVariables
        }\n"
      } sysdeps/generic/unsecvars.h
    '';
    installPhase = "cp -r . $out";
  };
  gawk = debian "gawk" { more = "ln -s /usr/bin/gawk $out/bin/awk"; }; # which Debian has as an alternative
  gcc = prev.stdenv.cc;
  gcc15 = prev.stdenv.cc;
  bintools = prev.stdenv.cc.bintools;
  gnugrep = tool "gnugrep" "grep";
  gnumake = tool "gnumake" "make";
  gnused = tool "gnused" "sed";
  gnutar = tool "gnutar" "tar";
  hostname-debian = debian "hostname" { };
  iana-etc = final.runCommand "iana-etc" { version = "0"; } ''
    mkdir -p $out/etc
    cp /etc/protocols /etc/services $out/etc
  '';
  iproute2 = debian "iproute2" { mainProgram = "ip"; };
  # The names that Debian has as alternatives.
  iptables = debian "iptables" {
    more = ''
      for name in {iptables,ip6tables}{,-save,-restore}; do
        ln -sfn /usr/sbin/xtables-nft-multi $out/bin/$name
      done
    '';
  };
  iputils = debian "iputils" {
    packages = [ "iputils-ping" ];
    mainProgram = "ping";
  };
  kmod-blacklist-ubuntu = final.runCommand "kmod-blacklist" { } "mkdir $out; touch $out/modprobe.conf";
  kmod-debian-aliases = final.emptyFile;
  libcap = debian "libcap" {
    packages = [ "libcap2-bin" ];
    outputs = [
      "out"
      "dev"
      "lib"
    ];
  };
  libxml2 = debian "libxml2" {
    packages = [ "libxml2-utils" ];
    outputs = [
      "out"
      "bin"
      "dev"
    ];
    more = alias [ "bin" ];
  };
  libxslt = debian "libxslt" {
    packages = [ "xsltproc" ];
    outputs = [
      "out"
      "bin"
      "dev"
    ];
    more = alias [ "bin" ];
  };
  linux-pam = debian "linux-pam" {
    packages = [
      "libpam-modules-bin"
      "libpam-runtime"
    ];
    more = ''
      mkdir -p $out/lib
      ln -s /usr/lib/x86_64-linux-gnu/security $out/lib/security
      ln -s /usr/lib/x86_64-linux-gnu/libpam.so.0 $out/lib
    '';
  };
  pam = final.linux-pam;
  linuxquota = debian "linuxquota" { packages = [ "quota" ]; };
  lndir = debian "lndir" { packages = [ "xutils-dev" ]; };
  lvm2 = debian "lvm2" {
    packages = [ "dmsetup" ];
    outputs = [
      "out"
      "bin"
    ];
    more = alias [ "bin" ];
  };
  ncurses = debian "ncurses" { packages = [ "ncurses-bin" ]; };
  nftables = debian "nftables" { mainProgram = "nft"; };
  nix = debian "nix" {
    packages = [
      "nix-bin"
      "nix-setup-systemd"
    ];
  };
  openresolv = debian "openresolv" {
    mainProgram = "resolvconf";
    more = "ln -s /usr/sbin/resolvconf $out/bin/openresolv";
  };
  openssh = debian "openssh" {
    packages = [
      "openssh-server"
      "openssh-client"
      "openssh-common"
      "openssh-sftp-server"
    ];
    mainProgram = "ssh";
    more = "ln -s /usr/lib/openssh $out/libexec";
    passthru = {
      withFIDO = true;
      withKerberos = false;
    };
  };
  perl = debian "perl" {
    packages = [
      "perl"
      "perl-base"
    ];
    passthru = {
      interpreter = "/usr/bin/perl";
      libPrefix = "lib/perl5";
      withPackages = _: final.perl; # the tree has those that NixOS asks for
    };
  };
  python3 = debian "python3" {
    packages = [
      "python3"
      "python3-minimal"
    ];
    passthru = {
      interpreter = "/usr/bin/python3";
      pkgs = { };
      withPackages = _: final.python3;
    };
  };
  python3Minimal = final.python3;
  shadow = debian "shadow" {
    packages = [
      "passwd"
      "login"
      "login.defs"
      "uidmap"
      "util-linux-extra"
    ];
    outputs = [
      "out"
      "su"
    ];
    more = ''
      mkdir -p $su/bin
      ln -s /usr/bin/su $su/bin
    '';
    passthru.shellPath = "/bin/nologin";
  };
  su = final.shadow.su;
  shellcheck = empty "shellcheck" // {
    compiler.bootstrapAvailable = false; # it is a program in Haskell; scripts are checked where it is
  };
  shellcheck-minimal = final.shellcheck;
  # nixpkgs' own expression and source.
  switch-to-configuration-ng = prev.switch-to-configuration-ng.override {
    clippy = null;
    pkg-config = debian "pkg-config" { packages = [ "pkgconf-bin" ]; };
    rustPlatform.buildRustPackage =
      given:
      final.stdenv.mkDerivation (
        removeAttrs given [
          "cargoLock"
          "nativeCheckInputs"
          "preCheck"
        ]
        // {
          PKG_CONFIG_PATH = "/usr/lib/x86_64-linux-gnu/pkgconfig";
          # The crates are those of its own lock file; cargo has fetched and checked them before (workshop.py).
          buildPhase = ''
            cp -r /mnt/crates $TMPDIR/cargo
            chmod -R u+w $TMPDIR/cargo
            CARGO_HOME=$TMPDIR/cargo cargo build --frozen --release
          '';
          installPhase = "install -D -t $out/bin target/release/${given.meta.mainProgram}";
        }
      );
  };
  systemd = debian "systemd" {
    packages = [
      "systemd"
      "systemd-coredump"
      "systemd-dev"
      "systemd-oomd"
      "systemd-sysv"
      "systemd-timesyncd"
      "udev"
    ];
    outputs = [
      "out"
      "dev"
      "man"
    ];
    # NixOS takes its choice from below example/.
    more = ''
      mkdir -p $out/example/systemd
      mv $out/lib/systemd/system $out/lib/systemd/user $out/example/systemd
      for path in /usr/lib/systemd/*; do
        case $path in
          */system | */user) ;;
          *) ln -sfn $path $out/lib/systemd ;;
        esac
      done
      mv $out/lib/tmpfiles.d $out/lib/sysctl.d $out/lib/sysusers.d $out/example
      ln -s /usr/lib/x86_64-linux-gnu/security $out/lib/security
    '';
    passthru =
      lib.genAttrs
        [
          "withBootloader"
          "withCryptsetup"
          "withEfi"
          "withFido2"
          "withImportd"
          "withMachined"
          "withNspawn"
          "withPortabled"
          "withRepart"
          "withSysupdate"
          "withTpm2Units"
          "withUtmp"
        ]
        (_: false)
      // lib.genAttrs [
        "withHostnamed"
        "withKmod"
        "withLocaled"
        "withLogind"
        "withNetworkd"
        "withTimedated"
      ] (_: true)
      // {
        inherit (final) kbd kmod util-linux;
        interfaceVersion = 2;
      };
  };
  systemdLibs = final.systemd;
  systemdMinimal = final.systemd;
  udev = final.systemd;
  tzdata = debian "tzdata" {
    more = ''
      mkdir -p $out/share
      ln -s /usr/share/zoneinfo $out/share/zoneinfo
    '';
  };
  util-linux = debian "util-linux" {
    packages = [
      "util-linux"
      "fdisk"
      "lastlog2"
      "login"
      "mount"
      "util-linux-extra"
    ];
    outputs = [
      "out"
      "bin"
      "lastlog"
      "login"
      "mount"
      "swap"
    ];
    more = ''
      mkdir -p $lastlog/lib/tmpfiles.d
      ln -s /usr/lib/x86_64-linux-gnu/security $lastlog/lib/security
      echo 'd /var/lib/lastlog 0755 root root -' > $lastlog/lib/tmpfiles.d/lastlog2.conf
      ${alias [
        "bin"
        "login"
        "mount"
        "swap"
      ]}
    '';
    passthru.hasCol = true;
  };
  util-linuxMinimal = final.util-linux;
  which = debian "which" {
    packages = [ "debianutils" ];
    more = "ln -s /usr/bin/which.debianutils $out/bin/which";
  };
  xz = debian "xz" { packages = [ "xz-utils" ]; };

  # The kernel is beside the system (workshop.py); modules ask for its version and some of its settings.
  debianKernel =
    let
      kernel = final.runCommand "linux-debian" {
        version = versions.linux-image-cloud-amd64;
        passthru = {
          buildDTBs = false;
          config = lib.genAttrs [ "isDisabled" "isNo" ] (_: _: false) // lib.genAttrs [ "isEnabled" "isModule" "isSet" "isYes" ] (_: _: true);
          configfile = builtins.toFile "config" ''
            CONFIG_ARCH_MMAP_RND_BITS_MAX=32
            CONFIG_ARCH_MMAP_RND_COMPAT_BITS_MAX=16
          '';
          features = { };
          isHardened = false;
          isLTS = false;
          isModular = true;
          isZen = false;
          kernelAtLeast = lib.versionAtLeast kernel.version;
          kernelOlder = lib.versionOlder kernel.version;
          kernelPatches = [ ];
          modDirVersion = kernel.version;
          modules = kernel;
          target = "bzImage";
        };
      } "mkdir $out";
    in
    kernel
    // {
      override = _: kernel;
      overrideAttrs = _: kernel;
    };

  pkgsMusl = final;
  pkgsStatic = final;
  pkgsi686Linux = final;
}
