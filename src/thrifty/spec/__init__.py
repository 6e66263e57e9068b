"""The nouns: Job, Cluster, Recipe, Bill and Plan. Plain frozen pydantic models; nothing here imports torch."""

from thrifty.spec.bill import Bill
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import Figure
from thrifty.spec.job import Job, ModelShape
from thrifty.spec.plan import Plan
from thrifty.spec.recipe import Recipe

__all__ = ["Bill", "Cluster", "Figure", "Job", "ModelShape", "Plan", "Recipe", "ThriftyError"]
