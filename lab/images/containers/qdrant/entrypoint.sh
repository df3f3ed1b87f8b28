#!/bin/sh
exec /qdrant/venv/bin/python -B /qdrant/qdrant_stand_in.py
