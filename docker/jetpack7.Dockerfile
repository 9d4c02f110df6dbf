# edge_atp on JetPack 7: Ubuntu 24.04, Python 3.12, ROS 2 Jazzy from apt.
#   docker build -f docker/jetpack7.Dockerfile -t edge_atp:jetpack7 .
# Run with the NVIDIA runtime; TensorRT and CUDA are those of the host's JetPack.
FROM ros:jazzy-ros-base

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential git libgl1 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 robot

COPY --chown=robot:robot . /opt/edge_atp
WORKDIR /opt/edge_atp
USER 10001
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN source /opt/ros/jazzy/setup.bash && make setup

HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["scripts/with_ros", "python", "docker/healthcheck.py"]
ENTRYPOINT ["/ros_entrypoint.sh", "scripts/with_ros"]
CMD ["ros2", "launch", "edge_atp", "warehouse.launch.py"]
