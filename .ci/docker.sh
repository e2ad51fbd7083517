# Docker for the tests, with or without an init system. Sourced by run.
#
# A daemon that answers (DOCKER_HOST, a service) is used as it is; the tests' images are removed from
# it afterwards, except under names that it had before. Otherwise Debian's is started in the
# background, with a data folder of its own that is removed with it, and stopped by its pid. It gets
# no bridge and touches no firewall: the tests build and run with the host's network, so a machine
# without iptables modules will do. The storage driver is the daemon's own choice (overlay2 where the
# file system allows it, else vfs).

docker_pid=
docker_root=
docker_before=
docker_log=${TMPDIR:-/tmp}/dockerd-$$.log

docker_answers() { timeout 20 docker info >/dev/null 2>&1; }

# The names that the tests give to images, as far as the daemon has them.
docker_names() {
  docker image ls --format '{{.Repository}}:{{.Tag}}' \
    --filter 'reference=cosmos-pipelines/*-python:*' --filter 'reference=local/python:*'
}

docker_start() {
  if docker_answers; then
    docker_before=$(docker_names && echo "(all)")
    return
  fi
  if ((EUID != 0)); then
    echo "No Docker daemon answers${DOCKER_HOST:+ at $DOCKER_HOST}, and only root can start one." >&2
    echo "Start Docker, or run as root; the tests before this one did not need it." >&2
    return 1
  fi
  unset DOCKER_HOST DOCKER_CONTEXT
  # runc needs control groups. An init system mounts them; a bare virtual machine may not have one.
  if ! grep -qE ' cgroup2? ' /proc/self/mounts; then
    mkdir -p /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup || true # the daemon's own words below say more
  fi
  # Where the daemon's data usually is: /tmp may be in memory, and may not carry overlay2.
  docker_root=$(mktemp -d /var/lib/docker-ci-XXXXXX)
  setsid dockerd --data-root "$docker_root" --bridge=none --iptables=false --ip6tables=false \
    --ip-forward=false >"$docker_log" 2>&1 </dev/null &
  docker_pid=$!
  for ((i = 0; i < 120; i++)); do
    if docker_answers; then
      docker info --format 'Docker {{.ServerVersion}}, {{.Driver}} on {{.DockerRootDir}}, cgroup v{{.CgroupVersion}}'
      return
    fi
    kill -0 "$docker_pid" 2>/dev/null || break
    sleep 0.5
  done
  echo "The Docker daemon could not be started here. The end of its log:" >&2
  tail -n 20 "$docker_log" >&2
  echo "It needs root with CAP_SYS_ADMIN and control groups: in a container, --privileged." >&2
  return 1
}

docker_stop() {
  if [[ -n $docker_before ]]; then
    comm -13 <(sort <<<"$docker_before") <(docker_names | sort) |
      xargs -r docker image rm >/dev/null || true
    docker_before=
  fi
  [[ -n $docker_pid ]] || return 0
  kill "$docker_pid" 2>/dev/null || true
  wait "$docker_pid" 2>/dev/null || true
  docker_pid=
  rm -rf --one-file-system "$docker_root"
}
