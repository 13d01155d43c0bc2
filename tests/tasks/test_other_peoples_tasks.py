"""Tasks of other people: soft labels, the example of docs/add_a_task.md, and triplets of images."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pages
import pytest
import torch

import adapt
from adapt import AdaptError, data, tasks
from adapt.data import open_image
from adapt.evaluation.evaluate import evaluate

