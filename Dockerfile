# The manager and the feature cache, static, without a shell.
FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26 AS build
ARG TARGETOS TARGETARCH
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY apis apis
COPY cmd cmd
COPY controllers controllers
COPY memcached memcached
COPY routing routing
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w" -o /out/ ./cmd/manager ./cmd/featurecache

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/manager /out/featurecache /
USER 65532:65532
ENTRYPOINT ["/manager"]
