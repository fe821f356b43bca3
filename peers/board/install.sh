#!/usr/bin/env bash
# Installs a peer as a service on a board with systemd; run it again to update.
set -euo pipefail

readonly prefix=/opt/astra-mesh
readonly unit=astra-mesh-peer.service
readonly unit_file=/etc/systemd/system/$unit
readonly defaults=/etc/default/astra-mesh
readonly link=/usr/local/bin/astra-mesh
readonly user=astra-mesh
readonly marker=$prefix/.made-by-install.sh  # nothing without it is ever deleted

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'END'
Usage: sudo ./install.sh [--from SOURCE] [--constraints FILE] [--options "..."]
                         [--join-key-file FILE] [--no-start]
       sudo ./install.sh --uninstall [--purge]

  --from SOURCE       a wheel, a folder with the source, or a name for pip
                      (default: the repository this script lies in, else "astra-mesh")
  --constraints FILE  pip constraints (default: constraints.txt of the repository, if there)
  --options "..."     options of `astra-mesh peer`, kept in /etc/default/astra-mesh
  --join-key-file FILE  a key of `astra-mesh pair --join-key` (-: from standard input), kept
                      beside the options, where no list of processes shows it
  --no-start          install only
  --uninstall         remove the program and the service; models and identity stay
  --purge             with --uninstall: remove models, identity and the user too

Needs: 64-bit Linux with systemd, Python 3.11 or newer with venv (Debian: python3-venv), about 2 GB.
PYTHON names another Python. pip's own environment variables (PIP_...) are respected.
END
}

say() { printf '%s\n' "$*"; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

main() {
    local source='' constraints='' options='' key_file='' start=yes uninstall=no purge=no
    while (($#)); do
        case $1 in
            --from) source=${2:?--from needs a value}; shift ;;
            --constraints) constraints=${2:?--constraints needs a value}; shift ;;
            --options) options=${2?--options needs a value}; shift ;;
            --join-key-file) key_file=${2:?--join-key-file needs a value}; shift ;;
            --no-start) start=no ;;
            --uninstall) uninstall=yes ;;
            --purge) purge=yes ;;
            -h | --help) usage; return 0 ;;
            *) usage >&2; fail "unknown option: $1" ;;
        esac
        shift
    done
    [[ " $options" != *' --join-key'[=\ ]* ]] ||
        fail 'a key in --options is seen in the list of processes: use --join-key-file FILE'
    [[ ! " $options" =~ [\ =](~|/home/|/root/) ]] ||
        fail '--options names a home folder, which the service does not see: use another, which the user astra-mesh may read'
    [[ $EUID -eq 0 ]] || fail 'run it as root: sudo ./install.sh'
    if [[ $uninstall == yes ]]; then
        remove "$purge"
        return 0
    fi
    [[ $purge == no ]] || fail '--purge goes with --uninstall'

    local repository=''
    [[ ! -f $here/../../pyproject.toml ]] || repository=$(cd "$here/../.." && pwd)
    source=${source:-${repository:-astra-mesh}}
    if [[ -z $constraints && -n $repository ]]; then constraints=$repository/constraints.txt; fi

    local key=''
    if [[ -n $key_file ]]; then key=$(read_key "$key_file"); fi
    local python=${PYTHON:-python3}
    check_python "$python"
    if [[ -e $prefix && ! -e $marker ]]; then
        fail "$prefix exists and was not made by this script; move it away first"
    fi
    make_user
    install_program "$python" "$source" "$constraints"
    install_service "$options" "$key"
    if [[ $start == yes ]]; then start_service; fi
}

check_python() {
    command -v "$1" >/dev/null || fail "no $1; install Python 3.11 or newer, or set PYTHON"
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$1 is older than Python 3.11; set PYTHON to a newer one"
    # A 64-bit kernel under a 32-bit system (older Raspberry Pi OS) does not help: the Python counts.
    "$1" -c 'import sys; sys.exit(sys.maxsize < 2**32)' ||
        fail 'this is a 32-bit system, for which torch has no files; install the 64-bit OS'
    # The service sees no home folders, so a Python in one (pyenv, uv) would not start there.
    "$1" -c 'import sys; sys.exit(sys.base_prefix.startswith(("/root/", "/home/")))' ||
        fail "$1 lies in a home folder; use the system's: PYTHON=/usr/bin/python3"
    "$1" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$1 cannot make virtual environments; on Debian: apt install python3-venv"
}

make_user() {
    if ! getent passwd "$user" >/dev/null; then
        useradd --system --user-group --home-dir /var/lib/astra-mesh --no-create-home \
            --shell /usr/sbin/nologin "$user"
        say "made the user $user"
    fi
}

install_program() {
    local python=$1 source=$2 constraints=$3
    local -a pins=()
    if [[ -n $constraints ]]; then pins=(--constraint "$constraints"); fi
    # An environment whose Python went away (an upgrade of the system) is made anew.
    if ! "$prefix/bin/python" -c '' 2>/dev/null; then
        rm -rf "$prefix"
        mkdir -p "$prefix"
        touch "$marker"
        "$python" -m venv "$prefix"
    fi
    say "installing $source into $prefix (the first time: some minutes)"
    local -a pip=("$prefix/bin/python" -m pip --disable-pip-version-check install --quiet)
    "${pip[@]}" "${pins[@]}" "$source"
    # Again without dependencies: a changed file of the same version number counts as an update.
    "${pip[@]}" --force-reinstall --no-deps "$source"
    install -m 0644 "$here/README.md" "$prefix/README.md"
    "$prefix/bin/astra-mesh" --help >/dev/null || fail 'the installed program does not start'
    if [[ ! -e $link || -L $link ]]; then ln -sfn "$prefix/bin/astra-mesh" "$link"; fi
}

read_key() {
    local file=$1 key=''
    if [[ $file == - ]]; then file=/dev/stdin; fi
    read -r key <"$file" || [[ -n $key ]] || fail "$1 holds no join key"
    [[ $key =~ ^amk-[a-z0-9]+$ ]] ||
        fail "$1 holds no join key: one begins with amk-; astra-mesh pair --join-key makes one"
    printf '%s' "$key"
}

# One line of the file of options; all others stay as they are.
set_line() {
    local others
    others=$(grep -v "^$1=" "$defaults" || true)
    printf '%s\n%s=%s\n' "$others" "$1" "$2" >"$defaults"
}

install_service() {
    local options=$1 key=${2:-}
    # It may hold a join key or the API's token: nobody else reads it.
    if [[ ! -e $defaults ]]; then
        install -m 0600 /dev/null "$defaults"
        say '# Options of the peer (astra-mesh peer --help), and variables for what nobody else may see' \
            >"$defaults"
    fi
    chmod 0600 "$defaults"
    if [[ -n $options ]] || ! grep -q '^ASTRA_MESH_OPTIONS=' "$defaults"; then
        set_line ASTRA_MESH_OPTIONS "\"$options\""
    fi
    if [[ -n $key ]]; then set_line ASTRA_MESH_JOIN_KEY "$key"; fi
    install -m 0644 "$here/$unit" "$unit_file"
    say "installed $unit_file and $defaults"
}

start_service() {
    if [[ ! -d /run/systemd/system ]]; then
        say "systemd does not run here; later: systemctl enable --now $unit"
        return 0
    fi
    systemctl daemon-reload
    systemctl enable --quiet "$unit"
    systemctl restart "$unit"
    say "the peer runs; its log: journalctl -u $unit -f"
}

remove() {
    local purge=$1
    if [[ -d /run/systemd/system && -e $unit_file ]]; then
        systemctl disable --now --quiet "$unit"
    fi
    rm -f "$unit_file"
    if [[ -d /run/systemd/system ]]; then systemctl daemon-reload; fi
    if [[ -e $marker ]]; then rm -rf "$prefix"; fi
    if [[ $(readlink "$link") == "$prefix/bin/astra-mesh" ]]; then rm -f "$link"; fi
    say 'removed the program and the service'
    if [[ $purge == yes ]]; then
        rm -rf /var/lib/astra-mesh /var/cache/astra-mesh "$defaults"
        if getent passwd "$user" >/dev/null; then userdel "$user"; fi
        say 'removed models, identity, options and the user'
    fi
}

main "$@"
