{ lib, system }:
let
  # Attributes become variables of the builder, so those that are sets stay outside.
  mkDerivation =
    args:
    let
      inside = removeAttrs args [
        "env"
        "meta"
        "passthru"
      ];
      made = derivation (
        inside
        // (args.env or { })
        // {
          inherit system;
          name = args.name or "${args.pname}-${args.version}";
          builder = "/bin/sh";
          args = [
            "-euc"
            (args.script or "mkdir -p $out/bin && cp ${./program} $out/bin/${args.meta.mainProgram or args.pname}")
          ];
          PATH = "/usr/bin:/bin";
        }
      );
    in
    made
    // {
      meta = args.meta or { };
      version = args.version or "1";
      src = args.src or ./program;
      overrideAttrs = change: mkDerivation (args // change args);
    };

  package =
    pname:
    mkDerivation {
      inherit pname;
      version = "1.0";
    };

  runCommand =
    name: variables: script:
    mkDerivation (
      {
        inherit name;
        script = ''
          for input in ''${nativeBuildInputs:-}; do PATH=$input/bin:$PATH; done
          ${script}
        '';
      }
      // variables
    );

  # With the arguments of nixpkgs' that are used here: another one is an error there as well.
  image =
    {
      name,
      tag,
      contents ? [ ],
      config,
      created ? "1970-01-01T00:00:01Z",
      fakeRootCommands ? "",
      includeStorePaths ? true,
    }:
    let
      described = builtins.toJSON {
        inherit config created;
        architecture = "amd64";
        os = "linux";
        rootfs = {
          type = "layers";
          diff_ids = [ "sha256:@layer@" ];
        };
      };
      listed = builtins.toJSON [
        {
          Config = "config.json";
          RepoTags = [ "${name}:${tag}" ];
          Layers = [ "layer.tar" ];
        }
      ];
    in
    runCommand "${baseNameOf name}.tar.gz" { inherit contents described listed; } ''
      mkdir root
      (cd root; ${fakeRootCommands})
      tar --sort=name --owner=0 --group=0 --mtime=@1 -C root -cf layer.tar .
      echo "$described" | sed "s/@layer@/$(sha256sum <layer.tar | cut -d' ' -f1)/" >config.json
      echo "$listed" >manifest.json
      tar -czf $out manifest.json config.json layer.tar
    '';

  # What the real set has under these names.
  pythonPackages = lib.genAttrs [
    "apscheduler"
    "click"
    "docker"
    "elasticsearch"
    "hatchling"
    "hvac"
    "pydantic"
    "pyroute2"
    "rich"
    "ruamel-yaml"
  ] package;

  packages =
    lib.genAttrs [
      "catatonit"
      "clang-tools"
      "gnumake"
      "gnupg"
      "iperf3"
      "iproute2"
      "libbpf"
      "libcap_ng"
      "linuxHeaders"
      "mypy"
      "nftables"
      "openssl"
      "openvpn"
      "pkg-config"
      "ruff"
      "runc"
      "strace"
      "wireguard-go"
      "wireguard-tools"
    ] package
    // {
      inherit lib runCommand;
      stdenv = {
        inherit mkDerivation;
      };
      pkgsStatic = packages;
      llvmPackages.clang-unwrapped = package "clang";
      dockerTools = {
        buildLayeredImage = image;
        streamLayeredImage = image;
        caCertificates = package "ca-certificates";
      };
      writeText =
        name: text:
        runCommand name { inherit text; } ''
          printf '%s' "$text" >$out
        '';
      linkFarm =
        name: entries:
        runCommand name { } ''
          mkdir $out
          ${builtins.concatStringsSep "\n" (map (e: "ln -s ${e.path} $out/${e.name}") entries)}
        '';
      mkShell =
        { inputsFrom, packages }:
        mkDerivation {
          pname = "shell";
          version = "1.0";
          inherit inputsFrom packages;
        };
      fetchPypi =
        {
          pname,
          version,
          format,
          dist,
          python,
          hash,
        }:
        package "${pname}-${version}";
      python3Packages = pythonPackages // {
        buildPythonPackage = mkDerivation;
        # The checkout's own command line instead of a built one.
        buildPythonApplication =
          args:
          mkDerivation (
            args
            // {
              script = ''
                mkdir -p $out/bin && cp ${./chainctl} $out/bin/chainctl
              '';
            }
          );
      };
      callPackage =
        file: given:
        let
          make = import file;
          wanted = builtins.functionArgs make;
        in
        make (builtins.intersectAttrs wanted packages // given);
    };
in
packages
