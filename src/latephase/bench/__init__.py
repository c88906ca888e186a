"""What curvature products and steps cost, beside a gradient and beside other packages."""
