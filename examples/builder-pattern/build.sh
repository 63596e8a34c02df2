#!/bin/sh
echo Building alexellis2/href-counter:build
lapstrake build -t alexellis2/href-counter:build . -f Dockerfile.build

#아티팩트를 복사하기 위한 컨테이너 생성
lapstrake container create --name extract alexellis2/href-counter:build
lapstrake container cp extract:/go/src/github.com/alexellis/href-counter/app ./app
lapstrake container rm -f extract

echo Building alexellis2/href-counter:latest
lapstrake build --no-cache -t alexellis2/href-counter:latest .
rm ./app
