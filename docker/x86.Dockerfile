# edge_atp on x86-64 (or Arm servers) without an apt ROS 2: ROS 2 Jazzy comes as wheels.
#   docker build -f docker/x86.Dockerfile -t edge_atp .
FROM python:3.12-slim-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential git libgl1 libglib2.0-0 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 robot

COPY --chown=robot:robot . /opt/edge_atp
WORKDIR /opt/edge_atp
USER 10001
RUN make setup

HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["scripts/with_ros", "python", "docker/healthcheck.py"]
ENTRYPOINT ["scripts/with_ros"]
CMD ["python", "-m", "edge_atp_ros.vlm_node", "--ros-args", "-p", "autostart:=true", "--params-file", "launch/params/warehouse.yaml"]
