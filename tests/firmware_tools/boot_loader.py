"""Plays overlay/grub.cfg: GRUB's language is close enough to bash: the real decisions are run, no model.

What GRUB reads and writes is replaced by functions: load_env, save_env, sha256sum. The kernel that would boot
is printed.
"""

import shlex
import subprocess
from pathlib import Path

from firmware_tools.build.spec import load_spec
from firmware_tools.build.ways.grub_efi import grub_configuration

_GRUB = r"""
LC_ALL=C
header='# GRUB Environment Block'
set() { declare -g "$1"; }
serial() { :; }
terminal_input() { :; }
terminal_output() { :; }
regexp() { :; }
initrd() { :; }
boot() { exit 0; }
sleep() { :; }
reboot() { exit 1; }  # never the machine's own
linux() { echo "linux $*"; }
whole() { [ -f "$1" ] && text=$(<"$1") && [ ${#text} = 1024 ] && [ "${text%%$'\n'*}" = "$header" ]; }
load_env() { # --file FILE NAME...
  local file=$2 name value text
  shift 2
  whole "$file" || return 1
  while IFS='=' read -r name value; do
    case " $* " in *" $name "*) declare -g "$name=$value" ;; esac
  done <<<"$text"
}
save_env() { # --file FILE NAME...
  local file=$2 name text padding
  shift 2
  whole "$file" || return 1
  text="$header"$'\n'
  for name in "$@"; do text+="$name=${!name}"$'\n'; done
  printf -v padding '%*s' $((1024 - ${#text})) ''
  printf '%s' "$text${padding// /#}" >"$file"
}
sha256sum() { (cd "$4" && exec sha256sum --check --status "$2" 2>/dev/null); }
"""


def kernel_line(folder: Path) -> str:
    """Boot once, from the boot environment in `folder`, as GRUB would; returns the kernel's line."""
    head, _, decisions = grub_configuration(load_spec("qemu-x86_64")).partition("# Chooses the slot")
    assert "set bootenv=$disk" in head
    script = decisions.replace("($bootenv)", "$bootenv").replace("($disk,$part)", "$part")
    script = f"{_GRUB}\nbootenv={shlex.quote(str(folder))}\n#{script}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, errors="replace"
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("linux ")]
    assert len(lines) == 1, (done.stdout, done.stderr)
    return lines[0]


def boot(folder: Path) -> str:
    """The slot that boots next; its try is counted."""
    words = dict(word.partition("=")[::2] for word in kernel_line(folder).split())
    return words["rauc.slot"]
