"""Hessian-free optimization: quadratic model, candidates, their judging."""

from .hessian_free import HessianFree as HessianFree
