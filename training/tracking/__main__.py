"""`python -m training.tracking BUNDLE`: log a bundle that was fitted while MLflow was unreachable."""

from training.tracking.tracker import main

if __name__ == "__main__":
    raise SystemExit(main())
