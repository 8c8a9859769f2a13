# The Python program with its compiled filter, and the libraries it loads at run time.
{
  lib,
  fetchPypi,
  gnupg,
  libbpf,
  linuxHeaders,
  llvmPackages,
  nftables,
  python3Packages,
  runc,
  src,
}:
let
  project = (fromTOML (builtins.readFile ../pyproject.toml)).project;
  text = builtins.readFile ../chainctl/__init__.py;
  version = builtins.head (builtins.match ".*__version__ = \"([^\"]+)\".*" text);

  # `ruamel.yaml>=0.18` is `ruamel-yaml` in nixpkgs (PEP 503 names).
  nameOf =
    requirement:
    lib.replaceStrings [ "." "_" ] [ "-" "-" ] (
      builtins.head (builtins.match "([A-Za-z0-9._-]+).*" requirement)
    );

  ours = {
    # Not in nixpkgs. Version and hash are those of requirements.lock.
    wgconfig = python3Packages.buildPythonPackage rec {
      pname = "wgconfig";
      version = "1.2.0";
      format = "wheel";
      src = fetchPypi {
        inherit pname version;
        format = "wheel";
        dist = "py3";
        python = "py3";
        hash = "sha256-tkHv7YQDG8MGl/fT5VfvaomsIolqRd6dIOpSqpDP1bU=";
      };
    };
  };
in
python3Packages.buildPythonApplication {
  pname = "chainctl";
  inherit version src;
  pyproject = true;

  build-system = [ python3Packages.hatchling ];
  dependencies = map (
    requirement: ours.${nameOf requirement} or python3Packages.${nameOf requirement}
  ) project.dependencies;

  nativeBuildInputs = [ llvmPackages.clang-unwrapped ];
  preBuild = ''
    make -C bpf CLANG="clang -I${lib.getDev libbpf}/include -I${linuxHeaders}/include"
  '';

  makeWrapperArgs = [
    "--prefix"
    "LD_LIBRARY_PATH"
    ":"
    (lib.makeLibraryPath [
      libbpf
      nftables
    ])
    "--prefix"
    "PATH"
    ":"
    (lib.makeBinPath [
      gnupg
      runc
    ])
  ];

  pythonImportsCheck = [ "chainctl.cli.main" ];

  meta = {
    inherit (project) description;
    license = lib.licenses.agpl3Plus;
    platforms = lib.platforms.linux;
    mainProgram = "chainctl";
  };
}
