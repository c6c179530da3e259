# For machines without a GPU. Not tried: no Docker was there. Its pip commands were run on Debian 12.
#
#     docker build -t embedding-learning .
#     docker run --rm -v "$PWD:/work" embedding-learning train --data-path=photographs
#
# Dockerfile.gpu differs in the requirements and the NVIDIA variables alone.
FROM python:3.11-slim-bookworm

# The libraries that the packages need.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libquadmath0 libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /source
COPY requirements*.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps .

# Data, runs and networks are in the folder that is mounted here.
WORKDIR /work
ENTRYPOINT ["embedding-learning"]
CMD ["--help"]
