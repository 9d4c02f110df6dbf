# edge_atp on JetPack 6: Ubuntu 22.04, Python 3.10, ROS 2 Humble from apt.
#   docker build -f docker/jetpack6.Dockerfile -t edge_atp:jetpack6 .
# Run with the NVIDIA runtime; TensorRT and CUDA are those of the host's JetPack.
FROM ros:humble-ros-base

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential git libgl1 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 robot

COPY --chown=robot:robot . /opt/edge_atp
WORKDIR /opt/edge_atp
USER 10001
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN source /opt/ros/humble/setup.bash && make setup

HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["scripts/with_ros", "python", "docker/healthcheck.py"]
ENTRYPOINT ["/ros_entrypoint.sh", "scripts/with_ros"]
CMD ["ros2", "launch", "edge_atp", "warehouse.launch.py"]
